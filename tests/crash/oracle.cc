#include "tests/crash/oracle.h"

#include <algorithm>
#include <cstring>
#include <sstream>

namespace cowfs::crash {
namespace {

std::ptrdiff_t index(uint64_t at) { return static_cast<std::ptrdiff_t>(at); }

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](std::byte byte) { return byte == std::byte{}; });
}

/// The first bytes, for people.
std::string digest(std::span<const std::byte> bytes) {
  if (all_zero(bytes)) return std::to_string(bytes.size()) + " zeros";
  std::ostringstream text;
  text << std::hex;
  for (size_t i = 0; i < std::min<size_t>(8, bytes.size()); ++i) {
    text << (std::to_integer<int>(bytes[i]) >> 4) << (std::to_integer<int>(bytes[i]) & 15);
  }
  return text.str() + "...";
}

}  // namespace

Oracle::Token Oracle::begin(Position now) {
  spans_.push_back({now, now == 0 ? 0 : kNever});
  return spans_.size() - 1;
}

void Oracle::end(Token token, Position now) {
  const std::lock_guard lock(mutex_);
  spans_[token].end = now;
}

// The sectors of [offset, offset + length) have the values that `image.bytes` says now.
void Oracle::note(ModelImage& image, Token token, uint64_t offset, uint64_t length, bool at_once) {
  if (length == 0) return;
  for (uint64_t i = offset / kSector; i <= (offset + length - 1) / kSector; ++i) {
    if (image.sectors.size() <= i) image.sectors.resize(i + 1);
    Value value{.token = token, .at_once = at_once, .length = 0, .bytes = {}};
    const uint64_t start = i * kSector;
    if (start < image.bytes.size()) {
      value.length = std::min<uint64_t>(kSector, image.bytes.size() - start);
      std::memcpy(value.bytes.data(), image.bytes.data() + start, value.length);
    }
    image.sectors[i].push_back(value);
  }
}

void Oracle::set_size(ModelImage& image, Token token, uint64_t size, bool at_once) {
  const uint64_t old = image.bytes.size();
  image.bytes.resize(size);
  image.sizes.push_back({.token = token, .at_once = at_once, .from = old, .to = size});
  note(image, token, std::min(old, size), std::max(old, size) - std::min(old, size), at_once);
}

Oracle::Token Oracle::create(Position now, const std::string& name, bool empty,
                             std::optional<uint64_t> size) {
  const std::lock_guard lock(mutex_);
  const Token token = begin(now);
  ModelImage image{
      .born = token, .bytes = empty ? Bytes() : base_, .sectors = {}, .sizes = {}, .flushes = {}};
  image.bytes.resize(size.value_or(image.bytes.size()));
  image.sizes.push_back(
      {.token = token, .at_once = true, .from = image.bytes.size(), .to = image.bytes.size()});
  note(image, token, 0, image.bytes.size(), true);
  const Id id = static_cast<Id>(images_.size());
  images_.emplace(id, std::move(image));
  NameSpace next{.token = token, .names = name_spaces_.back().names};
  next.names.emplace(name, id);
  name_spaces_.push_back(std::move(next));
  return token;
}

Oracle::Token Oracle::remove(Position now, const std::string& name) {
  const std::lock_guard lock(mutex_);
  NameSpace next{.token = begin(now), .names = name_spaces_.back().names};
  next.names.erase(name);
  name_spaces_.push_back(next);
  return next.token;
}

Oracle::Token Oracle::rename(Position now, const std::string& from, const std::string& to,
                             bool exchange) {
  const std::lock_guard lock(mutex_);
  NameSpace next{.token = begin(now), .names = name_spaces_.back().names};
  const Id source = next.names.at(from);
  if (exchange) {
    next.names[from] = next.names.at(to);
  } else {
    next.names.erase(from);
  }
  next.names[to] = source;
  name_spaces_.push_back(next);
  return next.token;
}

Oracle::Token Oracle::write(Position now, const std::string& name, uint64_t offset,
                            const Bytes& data) {
  const std::lock_guard lock(mutex_);
  ModelImage& image = this->image(name);
  const Token token = begin(now);
  const uint64_t old = image.bytes.size();
  const uint64_t end = offset + data.size();
  if (end > old) {
    image.sizes.push_back({.token = token, .at_once = false, .from = old, .to = end});
    if (offset > old) {
      // The gap reads as zeros, but what is written was never zeros.
      image.bytes.resize(offset);
      note(image, token, old, offset - old, false);
    }
    image.bytes.resize(end);
  }
  std::copy(data.begin(), data.end(), image.bytes.begin() + index(offset));
  note(image, token, offset, data.size(), false);
  return token;
}

Oracle::Token Oracle::make_zero(Position now, const std::string& name, uint64_t offset,
                                uint64_t length) {
  const std::lock_guard lock(mutex_);
  ModelImage& image = this->image(name);
  const Token token = begin(now);
  const uint64_t end = std::min<uint64_t>(offset + length, image.bytes.size());
  if (offset >= end) return token;
  std::fill(image.bytes.begin() + index(offset), image.bytes.begin() + index(end), std::byte{});
  note(image, token, offset, end - offset, false);
  return token;
}

Oracle::Token Oracle::extend(Position now, const std::string& name, uint64_t size) {
  const std::lock_guard lock(mutex_);
  ModelImage& image = this->image(name);
  const Token token = begin(now);
  if (size > image.bytes.size()) set_size(image, token, size, false);
  return token;
}

Oracle::Token Oracle::resize(Position now, const std::string& name, uint64_t size) {
  const std::lock_guard lock(mutex_);
  ModelImage& image = this->image(name);
  const Token token = begin(now);
  set_size(image, token, size, true);
  image.flushes.push_back(token);
  return token;
}

Oracle::Token Oracle::flush(Position now, const std::string& name) {
  const std::lock_guard lock(mutex_);
  const Token token = begin(now);
  image(name).flushes.push_back(token);
  return token;
}

bool Oracle::has(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return name_spaces_.back().names.contains(name);
}

std::vector<std::string> Oracle::names() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto& [name, id] : name_spaces_.back().names) names.push_back(name);
  return names;
}

Bytes Oracle::content(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  return images_.at(name_spaces_.back().names.at(name)).bytes;
}

void Oracle::reopened(Span span, const Shown& shown) { take_over(span, shown, true); }

void Oracle::recovered(Span span, const Shown& shown) { take_over(span, shown, false); }

void Oracle::take_over(Span span, const Shown& shown, bool killed) {
  const std::lock_guard lock(mutex_);
  const Token token = begin(span.begin);
  spans_[token].end = span.end;
  // Which of the name spaces that were possible it is: the last one, unless its change was cut off.
  NameSpace names = name_spaces_.back();
  const auto agrees = [&] {
    return names.names.size() == shown.size() &&
           std::all_of(names.names.begin(), names.names.end(), [&](const auto& entry) {
             const auto found = shown.find(entry.first);
             return found != shown.end() &&
                    !objection_to(images_.at(entry.second), span.end, found->second);
           });
  };
  if (!agrees() && name_spaces_.size() > 1) names = name_spaces_[name_spaces_.size() - 2];
  names.token = killed ? token : begin(span.begin);
  name_spaces_.push_back(names);
  for (const auto& [name, id] : names.names) {
    const auto found = shown.find(name);
    if (found == shown.end()) continue;
    ModelImage& image = images_.at(id);
    // A killed call has no end; what is seen now counts as done now.
    const uint64_t old = image.bytes.size();
    const uint64_t size = found->second.size();
    image.bytes = found->second;
    image.sizes.push_back({.token = token, .at_once = killed, .from = size, .to = size});
    note(image, token, 0, std::max(old, size), false);
  }
}

Position Oracle::flushed(const ModelImage& image, Position at) const {
  Position last = 0;
  for (const Token token : image.flushes) {
    const Span& span = spans_[token];
    if (span.end < at) last = std::max(last, span.begin);
  }
  return last;
}

template <typename Event>
size_t Oracle::first_allowed(const std::vector<Event>& events, Position at,
                             Position flushed) const {
  size_t first = 0;
  for (size_t i = 0; i < events.size(); ++i) {
    const Position end = spans_[events[i].token].end;
    if (end < flushed || (events[i].at_once && end < at)) first = i;
  }
  return first;
}

std::optional<std::string> Oracle::objection_to_size(const ModelImage& image, Position at,
                                                     uint64_t size) const {
  std::string allowed;
  for (size_t i = first_allowed(image.sizes, at, flushed(image, at)); i < image.sizes.size(); ++i) {
    const Size& event = image.sizes[i];
    if (spans_[event.token].begin >= at) break;
    // A write or a copy may raise it in steps.
    const bool settled = allowed.empty();
    if (event.to == size || (!event.at_once && !settled && size > event.from && size < event.to)) {
      return std::nullopt;
    }
    allowed += " " + std::to_string(event.to);
  }
  return "has size " + std::to_string(size) + ", allowed are:" + allowed;
}

std::string Oracle::describe(const ModelImage& image, const Value& value) const {
  const Span& span = spans_[value.token];
  std::string text = digest(std::span(value.bytes).first(value.length)) + " (" +
                     (value.token == image.born ? "born " : "") + std::to_string(span.begin) + "-";
  return text + (span.end == kNever ? "" : std::to_string(span.end)) + ")";
}

std::optional<std::string> Oracle::objection_to(const ModelImage& image, Position at,
                                                const Bytes& shown) const {
  if (auto objection = objection_to_size(image, at, shown.size())) return objection;
  const Position flushed = this->flushed(image, at);
  for (uint64_t start = 0; start < shown.size(); start += kSector) {
    const std::span<const std::byte> seen =
        std::span(shown).subspan(start, std::min<uint64_t>(kSector, shown.size() - start));
    const uint64_t sector = start / kSector;
    static const std::vector<Value> kNone;
    const std::vector<Value>& values =
        sector < image.sectors.size() ? image.sectors[sector] : kNone;
    bool found = false;
    std::string allowed;
    for (size_t i = first_allowed(values, at, flushed); i < values.size() && !found; ++i) {
      const Value& value = values[i];
      if (spans_[value.token].begin >= at) break;
      if (value.length < seen.size()) continue;
      found = std::equal(seen.begin(), seen.end(), value.bytes.begin());
      if (!found) allowed += "\n      " + describe(image, value);
    }
    if (found) continue;
    std::string text = "sector " + std::to_string(sector) + " of size " +
                       std::to_string(shown.size()) + " shows " + digest(seen);
    // Where does it come from?
    for (const auto& [id, other] : images_) {
      for (size_t i = 0; i < other.sectors.size() && !all_zero(seen); ++i) {
        for (const Value& value : other.sectors[i]) {
          if (!std::equal(seen.begin(), seen.end(), value.bytes.begin())) continue;
          text += "\n      which is " +
                  std::string(&other == &image ? "its own" : "another image's") + " sector " +
                  std::to_string(i) + ", " + describe(other, value);
        }
      }
    }
    return text + "\n    allowed are:" + allowed;
  }
  return std::nullopt;
}

std::optional<std::string> Oracle::objection(Position at, const Shown& shown) const {
  const std::lock_guard lock(mutex_);
  size_t first = 0;
  for (size_t i = 0; i < name_spaces_.size(); ++i) {
    if (spans_[name_spaces_[i].token].end < at) first = i;
  }
  std::string objections;
  for (size_t i = first; i < name_spaces_.size(); ++i) {
    if (spans_[name_spaces_[i].token].begin >= at) break;
    std::string text;
    for (const auto& [name, id] : name_spaces_[i].names) {
      const auto found = shown.find(name);
      if (found == shown.end()) {
        text += "  image " + name + " is missing\n";
      } else if (const auto objection = objection_to(images_.at(id), at, found->second)) {
        text += "  image " + name + ": " + *objection + "\n";
      }
    }
    for (const auto& [name, bytes] : shown) {
      if (!name_spaces_[i].names.contains(name)) text += "  image " + name + " is there\n";
    }
    if (text.empty()) return std::nullopt;
    objections += (objections.empty() ? "" : "  or else:\n") + text;
  }
  return objections;
}

}  // namespace cowfs::crash
