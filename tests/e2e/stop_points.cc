// What stop_point does in the program whose servers are killed by tests.

#include "tests/e2e/stop_points.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

namespace cowfs {
namespace {

e2e::StopOrders* map_orders() {
  const char* const path = std::getenv(e2e::kStopOrdersVariable);
  const int fd = path == nullptr ? -1 : open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return nullptr;
  void* const memory =
      mmap(nullptr, sizeof(e2e::StopOrders), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  return memory == MAP_FAILED ? nullptr : static_cast<e2e::StopOrders*>(memory);
}

// Before any thread, and before the server may open nothing any more.
e2e::StopOrders* const orders = map_orders();

}  // namespace

void stop_point(StopPoint point) noexcept {
  if (orders == nullptr) return;
  e2e::StopOrders::Order& order = orders->at(point);
  if (order.times.load() <= 0 || order.passes.fetch_sub(1) > 0) return;
  if (order.times.fetch_sub(1) <= 0) return;
  // Before it happens: who waits for it has to wait for this death, and order no other meanwhile.
  ++order.kills;
  // Who got the answer goes on with the other threads, and must not be overtaken by what is done
  // again.
  if (point == StopPoint::answer_sent) usleep(20'000);
  kill(getpid(), SIGKILL);
  // The signal comes before this returns, but perhaps to another thread.
  for (;;) pause();
}

}  // namespace cowfs
