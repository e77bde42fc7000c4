#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "tests/crash/disk.h"

namespace cowfs::crash {

using Bytes = std::vector<std::byte>;

/// What a store shows: the images by name, each with all of its bytes.
using Shown = std::map<std::string, Bytes>;

/// The time that something took; `end` is kNever while it goes on, and if it never returned.
struct Span {
  Position begin = 0;
  Position end = kNever;
};

/// Knows what was done to the images of a store, and from that what I3 and I4 allow the store to
/// show after a power cut. Thread-safe; two threads must not change one sector at the same time.
///
/// Each sector has a list of values, each with the time of the write that made it. Allowed are the
/// value at the time when the last completed flush began, and any later one whose write had begun.
/// A value counts as many bytes as the image had there then, so that growing an image over a sector
/// cannot show less than what was written: "zeros that nobody wrote". Sizes go the same way. A
/// resize and all changes of names have happened as a whole once they have returned, and as a whole
/// or not at all before. A resize flushes, too.
class Oracle {
 public:
  using Id = int;
  /// Something that has begun; to be ended when it has returned. What is never ended may have
  /// happened or not.
  using Token = size_t;

  explicit Oracle(Bytes base) : base_(std::move(base)) {}

  // Each begins what it names at position `now`.
  Token create(Position now, const std::string& name, bool empty, std::optional<uint64_t> size);
  Token remove(Position now, const std::string& name);
  Token rename(Position now, const std::string& from, const std::string& to, bool exchange);
  Token write(Position now, const std::string& name, uint64_t offset, const Bytes& data);
  Token make_zero(Position now, const std::string& name, uint64_t offset, uint64_t length);
  Token extend(Position now, const std::string& name, uint64_t size);
  Token resize(Position now, const std::string& name, uint64_t size);
  Token flush(Position now, const std::string& name);
  void end(Token token, Position now);

  [[nodiscard]] bool has(const std::string& name) const;
  [[nodiscard]] std::vector<std::string> names() const;
  /// What the image shows, as if nothing could fail.
  [[nodiscard]] Bytes content(const std::string& name) const;

  /// A store that was killed shows this when it is open again, from `span` on: nothing of it may
  /// go away again without reason, but data only once it is flushed.
  void reopened(Span span, const Shown& shown);
  /// As reopened, of a store that was not killed, but in which something failed: of sizes, too,
  /// nothing is durable before a flush; and a change of names that failed may still turn up after a
  /// power cut, as long as no later one has replaced it in the catalog's log.
  void recovered(Span span, const Shown& shown);

  /// What is wrong with a store that shows this after a power cut at `at`; nothing if all is well.
  [[nodiscard]] std::optional<std::string> objection(Position at, const Shown& shown) const;

 private:
  struct Value {
    Token token;
    bool at_once;   ///< of a resize: counts from its end on, without a flush
    size_t length;  ///< bytes of the sector that the image had
    std::array<std::byte, kSector> bytes;
  };
  struct Size {
    Token token;
    bool at_once;
    uint64_t from;
    uint64_t to;
  };
  struct ModelImage {
    Token born = 0;
    Bytes bytes;
    std::vector<std::vector<Value>> sectors;
    std::vector<Size> sizes;
    std::vector<Token> flushes;
  };
  struct NameSpace {
    Token token;
    std::map<std::string, Id> names;
  };

  Token begin(Position now);
  void take_over(Span span, const Shown& shown, bool killed);
  ModelImage& image(const std::string& name) {
    return images_.at(name_spaces_.back().names.at(name));
  }
  void set_size(ModelImage& image, Token token, uint64_t size, bool at_once);
  void note(ModelImage& image, Token token, uint64_t offset, uint64_t length, bool at_once);
  [[nodiscard]] Position flushed(const ModelImage& image, Position at) const;
  /// The first of a list that is still allowed after a cut at `at`.
  template <typename Event>
  [[nodiscard]] size_t first_allowed(const std::vector<Event>& events, Position at,
                                     Position flushed) const;
  [[nodiscard]] std::optional<std::string> objection_to(const ModelImage& image, Position at,
                                                        const Bytes& shown) const;
  [[nodiscard]] std::optional<std::string> objection_to_size(const ModelImage& image, Position at,
                                                             uint64_t size) const;
  [[nodiscard]] std::string describe(const ModelImage& image, const Value& value) const;

  mutable std::mutex mutex_;  // guards what follows
  const Bytes base_;
  std::vector<Span> spans_;  // by token
  std::map<Id, ModelImage> images_;
  std::vector<NameSpace> name_spaces_{{.token = begin(0), .names = {}}};
};

}  // namespace cowfs::crash
