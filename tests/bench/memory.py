"""What the server takes of memory with many large images, and after very many scattered writes."""

import os
import resource
import shutil
import threading

from machine import command, mounted, own_memory
from report import mib, table

TIB = 1 << 40
BLOCK = 4096


class Peak:
    """Watches a process's memory while something runs."""

    def __init__(self, pid):
        self.pid, self.bytes, self.done = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.done.wait(0.25):
            self.bytes = max(self.bytes, sum(own_memory(self.pid)))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


def scatter(path, span, count):
    """count random writes of 4 KiB over the first span bytes, past the page cache, and a flush."""
    command(
        "fio", "--name=scatter", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", f"--bs={BLOCK}",
        "--norandommap", "--randrepeat=0", f"--filename={path}", f"--size={span}", f"--io_size={count * BLOCK}",
        "--end_fsync=1", "--output-format=terse",
    )


def make_and_open_images(mount, count):
    """Makes the images, opens each for reading and writing, reads its first block; returns the descriptors."""
    descriptors = []
    for index in range(count):
        descriptor = os.open(mount.path(f"dom{index}.img"), os.O_RDWR | os.O_CREAT, 0o600)
        descriptors.append(descriptor)
        os.pread(descriptor, BLOCK, index * BLOCK)
    return descriptors


def run(directory, targets, images, writes):
    needed = 2 * writes * BLOCK * 3 // 2
    if shutil.disk_usage(directory).free < needed:
        raise RuntimeError(f"{directory}: needs {needed >> 20} MiB of free space")
    print(f"Memory of the server (PSS + memfd pages): {images} images of 1 TiB, then {writes} random writes of 4 KiB")
    descriptors_needed = images + 100
    hard_limit = max(descriptors_needed, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors_needed, hard_limit))
    base, directory = os.path.join(directory, "base-1t.img"), os.path.join(directory, "mnt-memory")
    with open(base, "wb") as file:
        file.truncate(TIB)
    rows = []

    def line(what, memory, before=0, peak=None, limit=None):
        pss, memfd = memory
        size = pss + memfd - before
        mark = ["", ""]
        if limit is not None:
            mark = [f"< {limit} MiB", targets.check(f"{what}: {mib(size)}", size < limit << 20)]
        more = f"+{mib(size)}" if before else ""
        rows.append([what, mib(pss), mib(memfd), more, mib(peak) if peak else "", *mark])

    with mounted(base, directory, "--chunk-size", "4K") as mount:
        line("just mounted", own_memory(mount.server))
        descriptors = make_and_open_images(mount, images)
        line(f"{images} images, all open", own_memory(mount.server), limit=40)
        for descriptor in descriptors:
            os.close(descriptor)
    for name, span, title, limit in (("dom0.img", TIB, "1 TiB", 80), ("dom1.img", 64 << 30, "64 GiB", 10)):
        # Each from a fresh server, so that neither profits from memory that the other has left.
        with mounted(base, directory) as mount:
            command("ls", "-l", directory)
            start = own_memory(mount.server)
            line("mounted again", start, limit=40)
            with Peak(mount.server) as peak:
                scatter(mount.path(name), span, writes)
            line(f"after the writes, over {title}", own_memory(mount.server), sum(start), peak.bytes, limit)
            os.unlink(mount.path(name))
    table(["", "PSS", "memfd", "more", "peak", "target", ""], rows)
