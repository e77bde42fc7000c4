#include "store/catalog.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <map>

#include "store/chunk_size.h"
#include "tests/store/support.h"

namespace cowfs::test {
namespace {

class CatalogTest : public ::testing::Test {
 protected:
  CatalogTest() { Catalog::create(path(), store_row(), base_row()); }
  [[nodiscard]] std::string path() const { return directory_ / "catalog.db"; }
  static StoreRow store_row() {
    return {.uuid = "0-1", .chunk_size = 65536, .policy = "sparse", .created_ns = 77};
  }
  static BaseRow base_row() {
    BaseRow row;
    row.path = "/srv/b";
    row.device = UINT64_MAX;
    row.inode = 5;
    row.size = 12345;
    row.mtime_ns = -1;
    row.ctime_ns = 9;
    row.fingerprint = pattern(1, 16);
    row.virtual_size = 12345;
    return row;
  }
  static ImageRow image_row(const std::string& name, uint64_t layer) {
    ImageRow row;
    row.name = name;
    row.layer = layer;
    row.size = 1000;
    row.mode = 0640;
    row.uid = UINT32_MAX - 1;
    row.gid = 6;
    row.atime_ns = 1;
    row.mtime_ns = -2;
    row.ctime_ns = 3;
    row.btime_ns = 4;
    return row;
  }
  uint64_t add_image(Catalog& catalog, const std::string& name) {
    Catalog::Change change(catalog);
    const uint64_t id = change.add_image(image_row(name, change.add_layer(500)));
    change.commit();
    return id;
  }
  [[nodiscard]] Catalog open() const { return {path(), Database::Mode::read_write}; }
  std::map<uint64_t, MapBits> pages(Catalog& catalog, uint64_t layer, uint64_t first = 0,
                                    uint64_t count = 1 << 20) {
    std::map<uint64_t, MapBits> found;
    catalog.load_pages(layer, first, count, valid,
                       [&](uint64_t page, const MapBits& bits) { found[page] = bits; });
    return found;
  }
  TempDir directory_;
};

TEST_F(CatalogTest, SecondCreateIsRefused) {
  EXPECT_EQ(error_of([&] { Catalog::create(path(), store_row(), base_row()); }).code(), EEXIST);
}

TEST_F(CatalogTest, ExistsTellsACatalogFromNoneAndFromABlankOne) {
  EXPECT_TRUE(Catalog::exists(path()));
  EXPECT_FALSE(Catalog::exists(directory_ / "none"));
  { Database database(directory_ / "blank", Database::Mode::create); }
  EXPECT_FALSE(Catalog::exists(directory_ / "blank"));
}

TEST_F(CatalogTest, ExistsLeavesAnotherProgramsDatabaseAsItIs) {
  const std::string other = directory_ / "other";
  {
    Database database(other, Database::Mode::create);
    database.execute("CREATE TABLE t (n); PRAGMA journal_mode = DELETE");
  }
  const Bytes before = read_file(other);
  EXPECT_EQ(error_of([&] { Catalog::exists(other); }).code(), EINVAL);
  EXPECT_EQ(read_file(other), before);
}

TEST_F(CatalogTest, StoreAndBaseComeBackAsTheyWent) {
  Catalog catalog = open();
  EXPECT_EQ(catalog.store().uuid, "0-1");
  EXPECT_EQ(catalog.store().chunk_size, 65536U);
  EXPECT_EQ(catalog.store().policy, "sparse");
  EXPECT_EQ(catalog.store().created_ns, 77);
  BaseRow base = catalog.base();
  EXPECT_EQ(base.path, "/srv/b");
  EXPECT_EQ(base.device, UINT64_MAX);
  EXPECT_EQ(base.size, 12345U);
  EXPECT_EQ(base.mtime_ns, -1);
  EXPECT_EQ(base.fingerprint, pattern(1, 16));
  EXPECT_TRUE(base.checksum.empty());
  base.checksum = pattern(2, 32);
  base.path = "/srv/c";
  EXPECT_FALSE(base.written_ns);
  base.written_ns = 42;
  {
    Catalog::Change change(catalog);
    change.set_base(base);
    change.commit();
  }
  EXPECT_EQ(catalog.base().checksum, pattern(2, 32));
  EXPECT_EQ(catalog.base().written_ns, 42);
  EXPECT_EQ(catalog.base().path, "/srv/c");
}

TEST_F(CatalogTest, FailuresAndSpaceLimitsComeBackAndCanBeTakenAway) {
  Catalog catalog = open();
  const uint64_t image = add_image(catalog, "a");
  const uint64_t layer = catalog.images().front().layer;
  EXPECT_FALSE(catalog.layers().front().failure);
  EXPECT_FALSE(catalog.images().front().space_limit);
  const auto set = [&](const std::optional<std::string>& failure, std::optional<uint64_t> limit) {
    Catalog::Change change(catalog);
    change.set_failure(layer, failure);
    change.set_space_limit(image, limit);
    change.commit();
  };
  set("fdatasync: no", 0);
  EXPECT_EQ(catalog.layers().front().failure, "fdatasync: no");
  EXPECT_EQ(catalog.images().front().space_limit, 0U);
  set(std::nullopt, std::nullopt);
  EXPECT_FALSE(catalog.layers().front().failure);
  EXPECT_FALSE(catalog.images().front().space_limit);
}

TEST_F(CatalogTest, ImagesComeBackAsTheyWentAndNumbersStartAtTwo) {
  Catalog catalog = open();
  EXPECT_EQ(add_image(catalog, "a"), 2U);
  EXPECT_EQ(add_image(catalog, "b"), 3U);
  const auto rows = catalog.images();
  ASSERT_EQ(rows.size(), 2U);
  EXPECT_EQ(rows[0].id, 2U);
  EXPECT_EQ(rows[0].name, "a");
  EXPECT_EQ(rows[0].size, 1000U);
  EXPECT_EQ(rows[0].mode, 0640U);
  EXPECT_EQ(rows[0].uid, UINT32_MAX - 1);
  EXPECT_EQ(rows[0].gid, 6U);
  EXPECT_EQ(rows[0].mtime_ns, -2);
  EXPECT_EQ(rows[0].btime_ns, 4);
  EXPECT_EQ(catalog.layers().at(0).parent_limit, 500U);
  EXPECT_FALSE(catalog.layers().at(0).has_file);
}

TEST_F(CatalogTest, NumbersAreNeverUsedAgain) {
  Catalog catalog = open();
  const uint64_t id = add_image(catalog, "a");
  const uint64_t layer = catalog.images().at(0).layer;
  {
    Catalog::Change change(catalog);
    change.put_page(layer, 7, MapBits{1});
    change.remove_image(id, layer);
    change.commit();
  }
  EXPECT_TRUE(catalog.images().empty());
  EXPECT_TRUE(catalog.layers().empty());
  EXPECT_TRUE(pages(catalog, layer).empty());
  EXPECT_GT(add_image(catalog, "a"), id);
  EXPECT_GT(catalog.images().at(0).layer, layer);
}

TEST_F(CatalogTest, TwoImagesCannotHaveOneNameButManyMayHaveNone) {
  Catalog catalog = open();
  const uint64_t first = add_image(catalog, "a");
  EXPECT_EQ(error_of([&] { add_image(catalog, "a"); }).code(), EEXIST);
  const uint64_t second = add_image(catalog, "b");
  Catalog::Change change(catalog);
  change.set_name(first, std::nullopt);
  change.set_name(second, std::nullopt);
  change.commit();
}

TEST_F(CatalogTest, ChangeThatIsNotCommittedLeavesNothing) {
  Catalog catalog = open();
  {
    Catalog::Change change(catalog);
    change.add_image(image_row("a", change.add_layer(1)));
  }
  EXPECT_TRUE(catalog.images().empty());
  EXPECT_TRUE(catalog.layers().empty());
}

TEST_F(CatalogTest, ColumnsAreSetOneByOne) {
  Catalog catalog = open();
  const uint64_t id = add_image(catalog, "a");
  const uint64_t layer = catalog.images().at(0).layer;
  ImageRow row = image_row("ignored", 99);
  row.id = id;
  row.mode = 0600;
  row.size = 4;
  row.mtime_ns = 55;
  {
    Catalog::Change change(catalog);
    change.set_image(row);
    change.set_size(id, kMaxImageSize);
    change.set_parent_limit(layer, 3);
    change.set_has_file(layer);
    change.commit();
  }
  const ImageRow back = catalog.images().at(0);
  EXPECT_EQ(back.name, "a");
  EXPECT_EQ(back.layer, layer);
  EXPECT_EQ(back.mode, 0600U);
  EXPECT_EQ(back.size, kMaxImageSize);
  EXPECT_EQ(back.mtime_ns, 55);
  EXPECT_EQ(back.btime_ns, 4);
  EXPECT_EQ(catalog.layers().at(0).parent_limit, 3U);
  EXPECT_TRUE(catalog.layers().at(0).has_file);
}

TEST_F(CatalogTest, PagesComeBackAndEmptyOnesTakeNoRow) {
  Catalog catalog = open();
  MapBits bits{};
  bits[63] = 0x9;
  {
    Catalog::Change change(catalog);
    change.put_page(1, 0, bits);
    change.put_page(1, 1023, bits);
    change.put_page(1, 1024, bits);
    change.put_page(2, 5, bits);
    change.put_page(1, 3, MapBits{});
    change.commit();
  }
  EXPECT_EQ(pages(catalog, 1, 0, 1024).size(), 2U);
  EXPECT_EQ(pages(catalog, 1)[1024], bits);
  {
    Catalog::Change change(catalog);
    change.put_page(1, 0, MapBits{});
    change.remove_pages_from(1, 1024);
    change.commit();
  }
  EXPECT_EQ(pages(catalog, 1).size(), 1U);
  EXPECT_EQ(pages(catalog, 2).size(), 1U);
}

TEST_F(CatalogTest, ImpossibleChunkStateIsDamage) {
  run_sql(path(), "INSERT INTO map_page VALUES (1, 0, zeroblob(511) || x'c0')");
  Catalog catalog = open();
  EXPECT_EQ(error_of([&] { pages(catalog, 1); }).code(), EUCLEAN);
}

TEST_F(CatalogTest, PageOfAnotherLengthIsDamage) {
  for (const char* length : {"0", "511", "513", "1000000"}) {
    run_sql(path(),
            std::string("INSERT OR REPLACE INTO map_page VALUES (1, 0, zeroblob(") + length + "))");
    Catalog catalog = open();
    EXPECT_EQ(error_of([&] { pages(catalog, 1); }).code(), EUCLEAN) << length;
  }
}

TEST_F(CatalogTest, ThrowingReceiverLeavesNoReadUnderWay) {
  Catalog catalog = open();
  {
    Catalog::Change change(catalog);
    for (uint64_t page = 0; page < 10; ++page) change.put_page(1, page, MapBits{1});
    change.commit();
  }
  EXPECT_THROW(catalog.load_pages(1, 0, 10, valid,
                                  [](uint64_t, const MapBits&) { throw Error(ENOMEM, "x"); }),
               Error);
  {
    Catalog::Change change(catalog);
    change.put_page(1, 3, MapBits{2});
    change.commit();
  }
  Database other(path(), Database::Mode::read_write);
  EXPECT_EQ(other.checkpoint(), 0);
  EXPECT_EQ(pages(catalog, 1).size(), 10U);
}

// The room may have been made for another change that found none either.
TEST_F(CatalogTest, AChangeThatFindsNoSpaceIsTriedAgainWhoeverMadeRoom) {
  Catalog catalog = open();
  int asked = 0;
  catalog.when_full([&] { ++asked; });
  int tries = 0;
  const auto full = [&](int times) {
    tries = 0;
    return [&tries, times](Catalog::Change&) {
      if (++tries <= times) throw Error(ENOSPC, "commit");
    };
  };
  catalog.change(full(1));
  EXPECT_EQ(tries, 2);
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(error_of([&] { catalog.change(full(2)); }).code(), ENOSPC);
  EXPECT_EQ(asked, 2);
}

struct Hostile {
  const char* name;
  const char* sql;
};

class HostileCatalogTest : public CatalogTest, public ::testing::WithParamInterface<Hostile> {};

TEST_P(HostileCatalogTest, IsDamageAndNoCrash) {
  {
    Catalog catalog = open();
    add_image(catalog, "a");
  }
  run_sql(path(), GetParam().sql);
  const Error error = error_of([&] {
    Catalog catalog = open();
    static_cast<void>(catalog.images());
    static_cast<void>(catalog.layers());
  });
  EXPECT_EQ(error.code(), EUCLEAN) << error.what();
}

INSTANTIATE_TEST_SUITE_P(
    Each, HostileCatalogTest,
    ::testing::Values(
        Hostile{"NoStoreRow", "DELETE FROM store"}, Hostile{"NoBaseRow", "DELETE FROM base"},
        Hostile{"ChunkSizeZero",
                "PRAGMA ignore_check_constraints = ON; UPDATE store SET chunk_size = 0"},
        Hostile{"ChunkSizeOdd",
                "PRAGMA ignore_check_constraints = ON; UPDATE store SET chunk_size = 5000"},
        Hostile{"ChunkSizeHuge",
                "PRAGMA ignore_check_constraints = ON; UPDATE store SET chunk_size = 4294971392"},
        Hostile{"ChunkSizeNegative",
                "PRAGMA ignore_check_constraints = ON; UPDATE store SET chunk_size = -4096"},
        Hostile{"ChunkSizeText",
                "PRAGMA ignore_check_constraints = ON; UPDATE store SET chunk_size = 'many'"},
        Hostile{"SizeNegative", "UPDATE image SET size = -1"},
        Hostile{"SizeHuge", "UPDATE image SET size = 9223372036854775807"},
        Hostile{"NumberOfTheRoot", "UPDATE image SET id = 1"},
        Hostile{"NumberNegative", "UPDATE image SET id = -7"},
        Hostile{"NameWithSlash", "UPDATE image SET name = '../../etc/passwd'"},
        Hostile{"NameWithEscape", "UPDATE image SET name = 'a' || char(27) || '[2J'"},
        Hostile{"NameEmpty", "UPDATE image SET name = ''"},
        Hostile{"NameDots", "UPDATE image SET name = '..'"},
        Hostile{"NameLong", "UPDATE image SET name = hex(zeroblob(200))"},
        Hostile{"LimitNegative", "UPDATE layer SET parent_limit = -1"},
        Hostile{"LimitHuge", "UPDATE layer SET parent_limit = 9223372036854775807"},
        Hostile{"LayerOverLayer", "UPDATE layer SET parent = 1"},
        Hostile{"LayerNegative", "UPDATE layer SET id = -3"}),
    [](const auto& hostile) { return std::string(hostile.param.name); });

}  // namespace
}  // namespace cowfs::test
