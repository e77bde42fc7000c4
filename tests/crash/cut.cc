#include "tests/crash/cut.h"

#include <algorithm>
#include <map>

namespace cowfs::crash {

std::string text_of(Left left) {
  static constexpr std::array<const char*, kLeftKinds> kTexts{
      "nothing",     "everything", "prefix",          "some", "torn", "one",
      "all but one", "one file",   "all but one file"};
  return kTexts.at(static_cast<size_t>(left));
}

void CutDisk::advance(Position at) {
  for (; seen_ < operations_.size() && operations_[seen_].at < at; ++seen_) {
    const Operation& operation = operations_[seen_];
    if (operation.kind != Operation::Kind::sync) undecided_.push_back(&operation);
  }
  // What had been done to a file before its last completed sync began.
  std::map<Inode, Position> synced;
  for (size_t i = 0; i < seen_; ++i) {
    const Operation& operation = operations_[i];
    if (operation.kind != Operation::Kind::sync || operation.end >= at) continue;
    Position& last = synced[operation.inode];
    last = std::max(last, operation.at);
  }
  std::erase_if(undecided_, [&](const Operation* operation) {
    const auto last = synced.find(operation->inode);
    if (last == synced.end() || operation->at > last->second) return false;
    durable_.apply(*operation);
    return true;
  });
  now_ = at;
}

std::vector<CutDisk::Fate> CutDisk::fates(const Cut& cut, std::mt19937_64& random) const {
  const size_t count = undecided_.size();
  std::vector<Fate> fates(count, Fate::none);
  if (count == 0) return fates;
  const size_t chosen = random() % count;
  const Inode file = undecided_[chosen]->inode;
  for (size_t i = 0; i < count; ++i) {
    const bool same_file = undecided_[i]->inode == file;
    const bool coin = random() % 2 == 0;
    const Fate any = random() % 4 == 0 ? Fate::torn : coin ? Fate::whole : Fate::none;
    switch (cut.left) {
      case Left::nothing:
        break;
      case Left::everything:
        fates[i] = Fate::whole;
        break;
      case Left::prefix:
        fates[i] = i < chosen ? Fate::whole : i == chosen ? Fate::torn : Fate::none;
        break;
      case Left::some:
        fates[i] = any;
        break;
      case Left::torn:
        fates[i] = Fate::torn;
        break;
      case Left::one:
        fates[i] = i == chosen ? Fate::whole : Fate::none;
        break;
      case Left::all_but_one:
        fates[i] = i == chosen ? Fate::none : Fate::whole;
        break;
      case Left::one_file:
        fates[i] = same_file ? Fate::whole : Fate::none;
        break;
      case Left::all_but_one_file:
        fates[i] = same_file ? Fate::none : Fate::whole;
        break;
    }
  }
  return fates;
}

Disk CutDisk::state(const Cut& cut) {
  if (cut.at > now_) advance(cut.at);
  std::mt19937_64 random(cut.seed);
  const std::vector<Fate> fates = this->fates(cut, random);
  Disk disk = durable_;
  for (size_t i = 0; i < fates.size(); ++i) {
    if (fates[i] == Fate::whole) disk.apply(*undecided_[i]);
    if (fates[i] == Fate::torn) {
      disk.apply_torn(*undecided_[i], random() % 4 == 0, [&] { return random() % 2 == 0; });
    }
  }
  return disk;
}

std::string CutDisk::describe(const Cut& cut) {
  if (cut.at > now_) advance(cut.at);
  std::mt19937_64 random(cut.seed);
  const std::vector<Fate> fates = this->fates(cut, random);
  std::string text = "cut at " + std::to_string(cut.at) + ", left: " + text_of(cut.left) + "\n";
  for (size_t i = 0; i < fates.size(); ++i) {
    static constexpr std::array<const char*, 3> kFates{"lost", "left", "torn"};
    text += "  " + std::to_string(undecided_[i]->at) + " " +
            kFates.at(static_cast<size_t>(fates[i])) + ": " + undecided_[i]->text() + "\n";
  }
  return text;
}

}  // namespace cowfs::crash
