// The two ways in which an image is born, and what copies it in, out and across.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/e2e/mounts.h"

namespace cowfs::e2e {
namespace {

class Birth : public MountTest {};

TEST_F(Birth, CreateAloneMakesAnImageOfTheBase) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Touch(*mount / "touched");
  Must(Cowfs({"create", *mount / "created"}));
  const File opened(*mount / "opened", O_RDWR | O_CREAT);
  const File appended(*mount / "appended", O_WRONLY | O_CREAT | O_APPEND);
  for (const std::string name : {"touched", "created", "opened", "appended"}) {
    EXPECT_EQ(StatOf(*mount / name).st_size, base.size()) << name;
    EXPECT_TRUE(Holds(*mount / name, base));
    EXPECT_EQ(AllocatedBytes(*mount / name), 512U) << name;  // not to be taken for a hole
  }
}

TEST_F(Birth, TruncateMakesABiggerImageThatReadsAsZerosBeyondTheBase) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  Must(Execute({"truncate", "-s", "20G", (*mount / "big").string()}));
  const File big(*mount / "big");
  EXPECT_EQ(big.Size(), 20 * kGiB);
  EXPECT_TRUE(Same(base + Zeros(kMiB), big.Read(0, base.size() + kMiB)));
  EXPECT_TRUE(Same(Zeros(kMiB), big.Read(20 * kGiB - kMiB, 2 * kMiB)));
  EXPECT_EQ(big.AllocatedBytes(), 512U);  // one block: not to be taken for a hole
}

TEST_F(Birth, ExclusiveCreateMakesAnEmptyFile) {
  MakeBase();
  auto mount = MountBase();
  const File file(*mount / "a", O_RDWR | O_CREAT | O_EXCL);
  EXPECT_EQ(file.Size(), 0U);
  EXPECT_TRUE(Same("", file.Read(0, 4096)));
  file.Write(100'000, "x");
  EXPECT_TRUE(Same(Zeros(100'000) + "x", file.ReadAll()));
  EXPECT_EQ(open((*mount / "a").c_str(), O_RDWR | O_CREAT | O_EXCL), -1);
  EXPECT_EQ(errno, EEXIST);
}

TEST_F(Birth, TruncatingCreateMakesAnEmptyFile) {
  MakeBase();
  auto mount = MountBase();
  const File file(*mount / "a", O_RDWR | O_CREAT | O_TRUNC);
  EXPECT_EQ(file.Size(), 0U);
  Must(Shell("printf hello > " + Quoted(*mount / "b")));
  EXPECT_EQ(ReadFile(*mount / "b"), "hello");
  file.Truncate(2 * kMiB);
  EXPECT_TRUE(Same(Zeros(2 * kMiB), file.ReadAll()));
}

TEST_F(Birth, AFileBornEmptyStaysApartFromTheBaseAfterARemount) {
  const Bytes base = MakeBase();
  auto mount = MountBase();
  {
    const File file(*mount / "a", O_RDWR | O_CREAT | O_EXCL);
    file.Write(3 * kMiB + 17, "end");
    const File empty(*mount / "empty", O_RDWR | O_CREAT | O_EXCL);
    const File from_base(*mount / "base", O_RDWR | O_CREAT);
    from_base.Write(5, "xyz");
  }
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "a", Zeros(3 * kMiB + 17) + "end"));
  EXPECT_TRUE(Holds(*mount / "empty", ""));
  Bytes changed = base;
  changed.replace(5, 3, "xyz");
  EXPECT_TRUE(Holds(*mount / "base", changed));
  Must(Execute({"truncate", "-s", "8M", (*mount / "empty").string()}));
  EXPECT_TRUE(Holds(*mount / "empty", Zeros(8 * kMiB)));
}

TEST_F(Birth, OpeningWhatExistsWithCreateChangesNothing) {
  MakeBase();
  auto mount = MountBase();
  WriteFile(*mount / "a", "own content");
  const File again(*mount / "a", O_RDWR | O_CREAT);
  EXPECT_EQ(again.ReadAll(), "own content");
  EXPECT_EQ(again.Size(), 11U);
}

TEST_F(Birth, MknodMakesARegularFile) {
  MakeBase();
  auto mount = MountBase();
  ASSERT_EQ(mknod((*mount / "a").c_str(), S_IFREG | 0600, 0), 0);
  EXPECT_TRUE(S_ISREG(StatOf(*mount / "a").st_mode));
  EXPECT_EQ(StatOf(*mount / "a").st_mode & 0777U, 0600U);
}

// A way to copy $1 to $2.
struct Tool {
  std::string name;
  std::string script;
  bool whole_sectors = false;  // copies whole 512-byte sectors only
};

void PrintTo(const Tool& tool, std::ostream* out) { *out << tool.name; }

class CopyTool : public MountTest, public testing::WithParamInterface<Tool> {
 protected:
  static void Copy(const Path& from, const Path& to) {
    const Result result =
        Execute({"sh", "-euc", GetParam().script, "sh", from.string(), to.string()});
    EXPECT_EQ(result.status, 0) << from << " to " << to << ": " << result.err;
  }
};

constexpr uint64_t kBaseSize = 4 * kMiB + 700;

// Sources with and without holes, smaller and larger than the base.
std::vector<std::pair<std::string, Bytes>> Sources() {
  const auto holes = [](uint64_t size, uint32_t seed) {
    Bytes bytes = RandomBytes(size, seed);
    // A hole at the start, some in the middle that are not on 64 KiB boundaries.
    for (const auto& [offset, length] :
         std::vector<std::pair<uint64_t, uint64_t>>{{0, 260 * kKiB},
                                                    {512 * kKiB, 4 * kKiB},
                                                    {700 * kKiB, 300 * kKiB},
                                                    {kMiB, 128 * kKiB}}) {
      bytes.replace(offset, length, Zeros(length));
    }
    return bytes;
  };
  return {
      {"small-full", RandomBytes(1536 * kKiB, 11)},
      {"small-holes", holes(1536 * kKiB, 12)},
      {"large-holes", holes(3 * kMiB, 13) + Zeros(2 * kMiB) + RandomBytes(kMiB, 14)},
      {"large-tail-hole", RandomBytes(4 * kMiB, 15) + Zeros(4 * kMiB)},
      {"all-hole", Zeros(6 * kMiB)},
      {"odd-holes", holes(2 * kMiB, 16) + Zeros(123'457) + "end"},
      {"empty", ""},
  };
}

TEST_P(CopyTool, CopiesByteForByteInAcrossAndOut) {
  MakeBase(kBaseSize);
  auto mount = MountBase();
  for (const auto& [name, bytes] : Sources()) {
    if (GetParam().whole_sectors && (bytes.size() % 512 != 0 || bytes.empty())) {
      continue;
    }
    SCOPED_TRACE(name);
    const Path source = Scratch() / name;
    WriteSparseFile(source, bytes);
    Copy(source, *mount / (name + ".in"));
    EXPECT_TRUE(Holds(*mount / (name + ".in"), bytes));
    Copy(*mount / (name + ".in"), *mount / (name + ".across"));
    EXPECT_TRUE(Holds(*mount / (name + ".across"), bytes));
    Copy(*mount / (name + ".across"), Scratch() / (name + ".out"));
    EXPECT_TRUE(Holds(Scratch() / (name + ".out"), bytes));
  }
  mount->Remount();
  for (const auto& [name, bytes] : Sources()) {
    if (std::filesystem::exists(*mount / (name + ".in"))) {
      EXPECT_TRUE(Holds(*mount / (name + ".in"), bytes));
      EXPECT_TRUE(Holds(*mount / (name + ".across"), bytes));
    }
  }
}

TEST_P(CopyTool, CopiesOverWhatIsThereByteForByte) {
  const Bytes base = MakeBase(kBaseSize);
  auto mount = MountBase();
  for (const auto& [name, bytes] : Sources()) {
    if (GetParam().whole_sectors && (bytes.size() % 512 != 0 || bytes.empty())) {
      continue;
    }
    SCOPED_TRACE(name);
    const Path source = Scratch() / name;
    WriteSparseFile(source, bytes);
    Touch(*mount / "image");  // with base content
    {
      const File image(*mount / "image");
      image.Write(300 * kKiB, RandomBytes(600 * kKiB, 99));
    }
    Copy(source, *mount / "image");
    EXPECT_TRUE(Holds(*mount / "image", bytes));
    std::filesystem::remove(*mount / "image");
  }
}

TEST_P(CopyTool, CopiesAnUntouchedImageByteForByte) {
  // It takes no space, and is not to be taken for a hole.
  const Bytes base = MakeBase(2 * kMiB + 512);
  auto mount = MountBase();
  Touch(*mount / "dom1");
  Copy(*mount / "dom1", *mount / "dom2");
  EXPECT_TRUE(Holds(*mount / "dom2", base));
  Copy(*mount / "dom2", Scratch() / "out");
  EXPECT_TRUE(Holds(Scratch() / "out", base));
}

TEST_P(CopyTool, CopiesAnImageOfTheBaseByteForByte) {
  // Whole sectors here, so that each tool can.
  Bytes expected = MakeBase(4 * kMiB + 512);
  auto mount = MountBase();
  Touch(*mount / "dom1");
  {
    const File image(*mount / "dom1");
    const Bytes own = RandomBytes(100'000, 3);
    image.Write(123'456, own);
    expected.replace(123'456, own.size(), own);
    image.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kMiB, kMiB);
    expected.replace(kMiB, kMiB, Zeros(kMiB));
    image.Truncate(expected.size() + kMiB);
    expected += Zeros(kMiB);
  }
  Copy(*mount / "dom1", *mount / "dom2");
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
  Copy(*mount / "dom1", Scratch() / "out");
  EXPECT_TRUE(Holds(Scratch() / "out", expected));
  mount->Remount();
  EXPECT_TRUE(Holds(*mount / "dom2", expected));
}

// tar cannot be told a new name; what it unpacks goes through a transformation.
constexpr char kTar[] =
    "n=$(basename \"$2\"); b=$(basename \"$1\"); "
    "tar -C \"$(dirname \"$1\")\" -Scf - \"$b\" | "
    "tar -C \"$(dirname \"$2\")\" --transform \"s/.*/$n/\" -xf -";

INSTANTIATE_TEST_SUITE_P(
    Tools, CopyTool,
    testing::Values(Tool{"cp", "cp -- \"$1\" \"$2\""},
                    Tool{"cp_sparse_always", "cp --sparse=always -- \"$1\" \"$2\""},
                    Tool{"tar_S", kTar}, Tool{"rsync_S", "rsync -S -- \"$1\" \"$2\""},
                    Tool{"dd", "dd if=\"$1\" of=\"$2\" bs=60k status=none"},
                    Tool{"dd_sparse", "dd if=\"$1\" of=\"$2\" bs=64k conv=sparse status=none"},
                    Tool{"cat", "cat \"$1\" > \"$2\""},
                    Tool{"qemu_img", "qemu-img convert -f raw -O raw \"$1\" \"$2\"", true}),
    [](const testing::TestParamInfo<Tool>& way) { return way.param.name; });

}  // namespace
}  // namespace cowfs::e2e
