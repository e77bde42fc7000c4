#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {

// How a base is mounted, where a test is to hold for every way.
struct Way {
  std::string cache;
  std::string chunk;
};

inline std::string NameOf(const Way& way) { return way.cache + "_" + way.chunk; }
inline void PrintTo(const Way& way, std::ostream* out) { *out << NameOf(way); }

class WayTest : public MountTest, public testing::WithParamInterface<Way> {
 protected:
  std::unique_ptr<Mount> MountInThisWay() const {
    return MountBase({"--chunk-size", GetParam().chunk, "-o", "cache=" + GetParam().cache});
  }
};

}  // namespace cowfs::e2e
