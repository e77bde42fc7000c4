#include "tests/crash/run.h"

#include <fcntl.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/null_sink.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "store/error.h"

namespace cowfs::crash {
namespace {

/// Bytes that tell which write they are of, and of which place: misplaced ones are seen.
Bytes pattern(uint64_t tag, uint64_t offset, uint64_t length) {
  Bytes bytes(length);
  for (uint64_t i = 0; i < length; ++i) {
    const uint64_t word = (tag << 32U) + (offset + i) / 8;
    const uint64_t mixed = (word + 1) * 0x9e3779b97f4a7c15;
    bytes[i] = static_cast<std::byte>((mixed ^ (mixed >> 29U)) >> ((offset + i) % 8 * 8));
  }
  return bytes;
}

/// Some of it is zeros, as in every disk.
Bytes base_content(const Scenario& scenario) {
  Bytes bytes = pattern(scenario.seed & 0xffffU, 0, scenario.base_size);
  for (uint64_t at = 0; at < bytes.size(); at += 40'960) {
    const uint64_t end = std::min<uint64_t>(bytes.size(), at + 6'000);
    std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(at),
              bytes.begin() + static_cast<std::ptrdiff_t>(end), std::byte{});
  }
  return bytes;
}

std::string make_base(const std::string& path, const Bytes& content) {
  File(path, O_WRONLY | O_CREAT | O_TRUNC, 0600).write(content, 0);
  return path;
}

/// The reserve is space and no data, and would cost more time than all the rest.
int make_no_reserve(const std::string& path, FileOperation operation, uint64_t, uint64_t) {
  return operation == FileOperation::allocate && path.ends_with("/reserve") ? ENOSPC : 0;
}

std::string make_root(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0) throw Error(errno, path);
  return path;
}

}  // namespace

Store::Options store_options(const std::string& directory, const std::string& base,
                             const Scenario& scenario) {
  static const auto log =
      std::make_shared<spdlog::logger>("crash", std::make_shared<spdlog::sinks::null_sink_mt>());
  Store::Options options;
  options.directory = directory;
  options.base_path = base;
  options.chunk_size = scenario.chunk_size;
  options.policy = scenario.policy;
  if (find_policy(scenario.policy).has_pool) options.pool_size = 4 << 20;
  options.create = true;
  options.log = log;
  options.fault_hook = make_no_reserve;
  return options;
}

Shown shown_by(Store& store) {
  Shown shown;
  for (const Store::Entry& entry : store.list(0, SIZE_MAX)) {
    const Image::Use image = entry.image->use();
    Bytes bytes(image->size());
    image->read(bytes, 0);
    shown.emplace(entry.name, std::move(bytes));
  }
  return shown;
}

Run::Run(const Scenario& scenario, const std::string& directory)
    : scenario_(scenario),
      base_path_(make_base(directory + "/base.img", base_content(scenario))),
      root_(make_root(directory + "/run")),
      base_(base_content(scenario)),
      recorder_(root_, scenario.reflinks),
      faults_(directory + "/"),
      oracle_(base_) {
  try {
    play();
  } catch (const std::exception& error) {
    failure_ = std::string("  thrown by the run: ") + error.what() + "\n";
    recorder_.kill();
    uses_.clear();
    nameless_.clear();
    store_.reset();
  }
  end_ = recorder_.mark();
  recorder_.stop();
}

void Run::play() {
  open();
  made_ = recorder_.mark();
  if (!scenario_.with_making) {
    recorder_.settle();
    start_ = recorder_.mark();
  }
  if (scenario_.fault) {
    recorder_.set_faults(&faults_);
    faults_.arm(*scenario_.fault);
  }
  for (const Step& step : scenario_.steps) {
    if (step.kill_after > 0) {
      recorder_.kill_after(step.kill_after);
      try {
        this->step(step);
      } catch (const std::exception&) {
        if (!recorder_.killed()) throw;  // the dead read what they thought they had written
      }
      kill_and_open();
    } else {
      faulty_step(step);
    }
    step_ends_.push_back(recorder_.mark());
    if (failure_) break;
  }
  nameless_.clear();
  uses_.clear();
  if (scenario_.seed % 2 == 0 && !failure_) faulty_step({.kind = Step::Kind::reopen});
  faults_.mend();
  store_.reset();
}

void Run::open() {
  store_ = std::make_unique<Store>(store_options(root_ + "/store", base_path_, scenario_));
}

void Run::kill_and_open() {
  recorder_.kill();
  nameless_.clear();
  uses_.clear();
  store_.reset();
  recorder_.revive();
  const Position begin = recorder_.mark();
  open();
  const Shown shown = shown_by(*store_);
  const Position end = recorder_.mark();
  if (const auto objection = oracle_.objection(end, shown)) {
    failure_ = "  after a kill:\n" + *objection;
    return;
  }
  oracle_.reopened({begin, end}, shown);
}

/// A step that may meet a fault. Then it ends with an error, or as if there had been none.
void Run::faulty_step(const Step& step) {
  const bool before = faults_.delivered();
  bool failed = false;
  try {
    this->step(step);
  } catch (const std::exception&) {
    if (!faults_.delivered()) throw;
    failed = true;
  }
  if (failed || before != faults_.delivered()) recover();
}

/// The disk is in order again. What the store shows, alive as it is, counts from now on.
void Run::recover() {
  faults_.mend();
  if (store_ == nullptr) open();
  const Position begin = recorder_.mark();
  Shown shown;
  try {
    shown = shown_by(*store_);
  } catch (const Error&) {
    // An image that failed, and whose map could not be read then, can be read after a restart.
    kill_and_open();
    return;
  }
  const Position end = recorder_.mark();
  if (const auto objection = oracle_.objection(end, shown)) {
    failure_ = "  after a fault:\n" + *objection;
    return;
  }
  oracle_.recovered({begin, end}, shown);
}

Image& Run::use(const std::string& name) {
  auto found = uses_.find(name);
  if (found == uses_.end()) found = uses_.emplace(name, store_->find(name)->use()).first;
  return *found->second;
}

void Run::done(Oracle::Token token) {
  // What returned in a process that is dead has not returned.
  const Position now = recorder_.mark();
  if (!recorder_.killed()) oracle_.end(token, now);
}

Bytes Run::bytes_for(const Step& step) {
  if (step.content == Step::Content::zeros) return Bytes(step.length);
  if (step.content == Step::Content::base && step.offset < base_.size()) {
    const auto first = base_.begin() + static_cast<std::ptrdiff_t>(step.offset);
    const uint64_t length = std::min<uint64_t>(step.length, base_.size() - step.offset);
    return {first, first + static_cast<std::ptrdiff_t>(length)};
  }
  return pattern((uint64_t{1} << 20U) + ++fills_, step.offset, step.length);
}

void Run::step(const Step& step) {
  switch (step.kind) {
    case Step::Kind::create:
    case Step::Kind::remove:
    case Step::Kind::rename:
    case Step::Kind::exchange:
      names_step(step);
      break;
    case Step::Kind::checkpoint:
      Database(root_ + "/store/catalog.db", Database::Mode::read_write).checkpoint();
      break;
    case Step::Kind::reopen:
      reopen();
      break;
    default:
      if (oracle_.has(step.image)) data_step(step);
  }
}

void Run::names_step(const Step& step) {
  const bool there = oracle_.has(step.image);
  const bool other_there = oracle_.has(step.other);
  const Position now = recorder_.mark();
  switch (step.kind) {
    case Step::Kind::create: {
      if (there) return;
      Store::NewImage image;
      image.name = step.image;
      image.empty = step.flag;
      if (step.length > 0) image.size = step.length;
      const auto token = oracle_.create(now, step.image, image.empty, image.size);
      static_cast<void>(store_->create(image));
      done(token);
      return;
    }
    case Step::Kind::remove: {
      if (!there) return;
      if (step.flag) static_cast<void>(use(step.image));
      auto held = uses_.extract(step.image);
      if (!held.empty() && step.flag) nameless_.push_back(std::move(held.mapped()));
      held = {};
      const auto token = oracle_.remove(now, step.image);
      store_->remove(step.image);
      done(token);
      return;
    }
    default: {
      const bool exchange = step.kind == Step::Kind::exchange;
      if (!there || step.image == step.other || (exchange && !other_there)) return;
      auto held = uses_.extract(step.image);
      auto other_held = uses_.extract(step.other);
      const auto token = oracle_.rename(now, step.image, step.other, exchange);
      store_->rename(step.image, step.other,
                     exchange ? Store::Rename::exchange : Store::Rename::replace);
      done(token);
      if (!held.empty()) {
        held.key() = step.other;
        uses_.insert(std::move(held));
      }
      if (!other_held.empty() && exchange) {
        other_held.key() = step.image;
        uses_.insert(std::move(other_held));
      } else if (!other_held.empty()) {
        nameless_.push_back(std::move(other_held.mapped()));
      }
    }
  }
}

void Run::data_step(const Step& step) {
  Image& image = use(step.image);
  const auto now = [this] { return recorder_.mark(); };
  switch (step.kind) {
    case Step::Kind::write: {
      const Bytes data = bytes_for(step);
      const auto token = oracle_.write(now(), step.image, step.offset, data);
      image.write(data, step.offset);
      done(token);
      break;
    }
    case Step::Kind::make_zero: {
      const auto token = oracle_.make_zero(now(), step.image, step.offset, step.length);
      image.make_zero(step.offset, step.length);
      done(token);
      break;
    }
    case Step::Kind::extend: {
      const auto token = oracle_.extend(now(), step.image, step.length);
      image.extend(step.length);
      done(token);
      break;
    }
    case Step::Kind::resize: {
      const auto token = oracle_.resize(now(), step.image, step.length);
      image.resize(step.length);
      done(token);
      break;
    }
    case Step::Kind::reserve:
      try {
        image.reserve(step.offset, step.length);
      } catch (const Error& error) {
        if (error.code() != EOPNOTSUPP) throw;  // not every policy can
      }
      break;
    case Step::Kind::copy:
      if (oracle_.has(step.other)) copy(step);
      break;
    case Step::Kind::flush:
    case Step::Kind::flush_all:
      flush(step);
      break;
    case Step::Kind::release:
      uses_.erase(step.image);
      nameless_.clear();
      store_->find(step.image)->retire_if_idle();
      break;
    case Step::Kind::together:
      together(step);
      break;
    default:
      break;
  }
}

void Run::copy(const Step& step) {
  const Bytes source = oracle_.content(step.other);
  if (step.other_offset >= source.size()) return;
  uint64_t length = std::min<uint64_t>(step.length, source.size() - step.other_offset);
  if (step.image == step.other) {
    const auto [low, high] = std::minmax(step.offset, step.other_offset);
    length = std::min(length, high - low);
  }
  if (length == 0) return;
  const auto first = source.begin() + static_cast<std::ptrdiff_t>(step.other_offset);
  const auto token = oracle_.write(recorder_.mark(), step.image, step.offset,
                                   Bytes(first, first + static_cast<std::ptrdiff_t>(length)));
  Image& from = use(step.other);
  Image& to = use(step.image);
  for (uint64_t at = 0; at < length;) {
    const uint64_t copied =
        to.copy_from(from, step.other_offset + at, step.offset + at, length - at);
    if (copied == 0) throw Error::with_message(EIO, "a copy came to no end");
    at += copied;
  }
  done(token);
}

void Run::flush(const Step& step) {
  Image& image = use(step.image);
  size_t next = 0;
  std::exception_ptr error;  // not to be thrown through SQLite
  // What is done inside a sync of the catalog cannot load the map from it.
  std::byte loads_the_map{};
  const bool busy = !step.during.empty() && image.read({&loads_the_map, 1}, 0) > 0;
  if (busy) {
    recorder_.set_during_sync([&] {
      if (next == step.during.size()) return;
      try {
        data_step(step.during[next++]);
      } catch (...) {
        error = std::current_exception();
      }
    });
  }
  struct Reset {
    Recorder& recorder;
    bool due;
    ~Reset() {
      if (due) recorder.set_during_sync(nullptr);
    }
  } const reset{recorder_, busy};
  const auto token = oracle_.flush(recorder_.mark(), step.image);
  step.kind == Step::Kind::flush ? image.flush() : image.flush_all();
  done(token);
  if (error) std::rethrow_exception(error);
}

void Run::together(const Step& step) {
  const uint64_t size = use(step.image).size();
  recorder_.set_jumpy(true);
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors(step.threads.size());
  for (size_t i = 0; i < step.threads.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        for (const Step& one : step.threads[i]) {
          // Who grows an image while another writes to what is new has no order to speak of.
          if (one.offset + one.length <= size) data_step(one);
        }
      } catch (...) {
        errors[i] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  recorder_.set_jumpy(false);
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

void Run::reopen() {
  nameless_.clear();
  uses_.clear();
  std::vector<Oracle::Token> tokens;
  for (const std::string& name : oracle_.names()) {
    tokens.push_back(oracle_.flush(recorder_.mark(), name));
  }
  const bool closed = store_->close();
  if (!closed && !faults_.delivered()) {
    throw Error::with_message(EIO, "the store did not close in order");
  }
  if (closed) {
    for (const Oracle::Token token : tokens) done(token);
  }
  store_->clear_failures();
  store_.reset();
  open();
  look("after closing and opening");
}

void Run::look(const char* when) {
  const Shown shown = shown_by(*store_);
  if (const auto objection = oracle_.objection(recorder_.mark(), shown)) {
    if (!recorder_.killed()) failure_ = std::string("  ") + when + ":\n" + *objection;
  }
}

}  // namespace cowfs::crash
