// Maps of slots in the catalog
//
// Maps lie in the catalog's map_page, and which slots they name in all, in its pool_page. The
// transaction that changes the one changes the other, by what the page says now against what it
// said before: the bits of the catalog are the sum of its maps at any time, and free space is known
// without looking at a map.

#include "store/slot_policy.h"

#include <utility>

#include "store/sabotage.h"

namespace cowfs {
namespace {

class CatalogSlotLayer final : public SlotLayer {
 public:
  CatalogSlotLayer(const PolicyContext& context, SlotSpace& space, ForgottenSlots& forgotten,
                   const LayerRow& row)
      : SlotLayer(context.chunk, context.arena, space, row),
        catalog_(context.catalog),
        forgotten_(forgotten) {}

  void publish(Catalog::Change& change, const Changes& changes) override {
    const SlotChanges& copies = slotted(changes);
    SlotDifference difference;
    for (const PageCopy& copy : copies.pages) {
      const bool live = sabotaged(Sabotage::commit_live_page);
      const MapBits bits = live ? map().copy(copy.page).bits : copy.bits;
      add_difference(change.map_page(id(), copy.page), bits, difference);
      change.put_page(id(), copy.page, bits);
    }
    if (copies.remove_pages_from) {
      change.for_each_page(id(), *copies.remove_pages_from, [&](const MapBits& bits) {
        add_difference(bits, MapBits{}, difference);
      });
      change.remove_pages_from(id(), *copies.remove_pages_from);
    }
    change.use_slots(difference.used, true);
    change.use_slots(difference.freed, false);
    change.add_own_chunks(id(), static_cast<int64_t>(count_of(difference.used)) -
                                    static_cast<int64_t>(count_of(difference.freed)));
  }

 protected:
  void load_pages(uint64_t first, uint64_t count, const Valid& valid,
                  const SlotMap::Receive& receive) override {
    catalog_.load_pages(id(), first, count, valid, receive);
  }

  std::optional<uint64_t> last_page() override { return catalog_.last_page(id()); }

  std::vector<SlotRun> take_forgotten() override {
    auto forgotten = forgotten_.lock();
    const auto found = forgotten->find(id());
    if (found == forgotten->end()) return {};
    std::vector<SlotRun> runs = std::move(found->second);
    forgotten->erase(found);
    return runs;
  }

 private:
  Catalog& catalog_;
  ForgottenSlots& forgotten_;
};

}  // namespace

SlotPolicy::SlotPolicy(const PolicyContext& context, SlotSpace& space)
    : context_(context), slot_space_(space) {}

std::unique_ptr<Layer> SlotPolicy::layer(const LayerRow& row) {
  return std::make_unique<CatalogSlotLayer>(context_, slot_space_, forgotten_, row);
}

void SlotPolicy::forget(Catalog::Change& change, uint64_t layer) {
  SlotDifference difference;
  change.for_each_page(layer, 0,
                       [&](const MapBits& bits) { add_difference(bits, MapBits{}, difference); });
  change.use_slots(difference.freed, false);
  forgotten_.lock()->insert_or_assign(layer, std::move(difference.freed));
}

}  // namespace cowfs
