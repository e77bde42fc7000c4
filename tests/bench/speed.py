"""Raw file against cowfs image, both under a loop device, plain and direct-io.

What is compared must differ in cowfs alone, so
- every file is wholly in the page cache before it is read, and the base too: a disk would hide everything else;
- the image's chunks are all its own before they are measured (`warm`); what a first write or a first read costs,
  and reads that fall through to the base, have rows of their own and no target;
- sides take turns within each round, and each figure is a median of all rounds: machines are noisy;
- what is in the page cache is read by the kernel alone, and its speed depends on how the pages lie in memory; so reads
  are measured once more with pages that lie alike on both sides (`scattered`);
- fio opens the devices with O_DIRECT, so that requests reach the loop device as they are;
- after each writing job the device is flushed outside the time that is measured.
"""

import collections
import contextlib
import json
import os
import shutil
import statistics

from machine import command, drop, flush, loop_device, mounted, read_all, read_scattered
from report import spread, table

Job = collections.namedtuple("Job", "name mode block depth")
JOBS = [
    Job("seq read 1M QD4", "read", "1M", 4),
    Job("rand read 4k QD16", "randread", "4k", 16),
    Job("seq write 1M QD4", "write", "1M", 4),
    Job("rand write 4k QD16", "randwrite", "4k", 16),
]
READS, WRITES = JOBS[:2], JOBS[2:]
RANDOM_READ = JOBS[1]


def fio(job, device, seconds, once=False):
    """Runs one job and returns bytes a second (1M) or operations a second (4k).

    once: over every byte in order, or a quarter as many at random, instead of for a time: for first touches.
    """
    words = [
        "fio", "--name=bench", "--ioengine=libaio", "--direct=1", "--invalidate=0", "--randrepeat=0",
        f"--rw={job.mode}", f"--bs={job.block}", f"--iodepth={job.depth}", f"--filename={device}",
        "--output-format=json",
    ]
    if once:
        words += ["--io_size=25%"] if job.mode.startswith("rand") else []
    else:
        words += ["--time_based", f"--runtime={seconds}", "--ramp_time=0.5", "--norandommap"]
    output = command(*words)
    side = json.loads(output[output.index("{"):])["jobs"][0]["read" if "read" in job.mode else "write"]
    if job in WRITES:
        flush(device)
    return side["iops"] if job.block == "4k" else side["bw_bytes"]


class Figures:
    """All measurements: figures[side, job] is a list with one value a round."""

    def __init__(self):
        self.values = collections.defaultdict(list)

    def add(self, side, job, value):
        self.values[side, job].append(value)

    def row(self, title, raw, cowfs, job):
        """Cells of one line and the ratio of the medians."""
        mine, theirs = self.values[cowfs, job], self.values[raw, job]
        ratio = statistics.median(mine) / statistics.median(theirs)
        scale, unit = (1e-3, "k IOPS") if job.block == "4k" else (1 / 2**20, "MiB/s")
        return [title, unit, spread(theirs, scale), spread(mine, scale), f"{ratio:.2f}"], ratio


def make_files(directory, size):
    """A base with random content and two raw files that are as large, all in the page cache."""
    paths = [os.path.join(directory, name) for name in ("base.img", "raw.img", "raw-direct.img")]
    with open(paths[0], "wb", buffering=0) as base:
        for _ in range(size >> 20):
            base.write(os.urandom(1 << 20))
    for path in paths[1:]:
        with open(path, "xb"):
            pass
        command("dd", f"if={paths[0]}", f"of={path}", "bs=1M", "conv=notrunc", "status=none")
    for path in paths:
        flush(path)
        read_all(path)
    return paths


def create(mount, name):
    with open(mount.path(name), "ab"):
        pass
    return mount.path(name)


def measure_warm(mount, paths, figures, rounds, seconds):
    base, raw, raw_direct = paths
    names = {"warm": False, "warm-direct": True}
    for name in names:
        # Written over with what it held: every chunk is the image's own now, and its content is still the base's.
        command("dd", f"if={base}", f"of={create(mount, name)}", "bs=1M", "conv=notrunc", "status=none")
        flush(mount.path(name))
    for name in ("fallthrough", "fallthrough-direct"):
        create(mount, name)
    with contextlib.ExitStack() as stack:
        def device(path, direct):
            return stack.enter_context(loop_device(path, direct))

        sides = {
            "raw": device(raw, False),
            "cowfs": device(mount.path("warm"), False),
            "raw direct": device(raw_direct, True),
            "cowfs direct": device(mount.path("warm-direct"), True),
            "base": device(mount.path("fallthrough"), False),
            "base direct": device(mount.path("fallthrough-direct"), True),
        }
        for name in ("warm", "fallthrough"):
            read_all(mount.path(name))
        for _ in range(rounds):
            # Warm by reading, on both sides: how a file was written shows in how the kernel keeps it.
            for path in (raw, mount.path("warm")):
                drop(path)
                read_all(path)
            for job in JOBS:
                for side, path in sides.items():
                    if job in READS or not side.startswith("base"):
                        figures.add(side, job, fio(job, path, seconds))
        cached = {"raw": raw, "cowfs": mount.path("warm")}
        for path in cached.values():
            drop(path)
            read_scattered(path)
        for _ in range(rounds):
            for job in READS:
                for side in cached:
                    figures.add(f"{side} scattered", job, fio(job, sides[side], seconds))
        # As the first touches are measured against it.
        drop(raw)
        read_all(raw)


def measure_first_touch(mount, directory, size, figures, rounds):
    """Each round takes a new image, and a new sparse raw file for what is written."""
    for direct in (False, True):
        for job in [JOBS[0], *WRITES]:
            for _ in range(rounds):
                raw = os.path.join(directory, "raw.img")
                if job in WRITES:
                    raw = os.path.join(directory, "sparse.img")
                    with open(raw, "wb") as file:
                        file.truncate(size)
                image = create(mount, "first")
                for side, path in (("raw", raw), ("cowfs", image)):
                    with loop_device(path, direct) as device:
                        figures.add(f"{side} first {direct}", job, fio(job, device, 0, once=True))
                os.unlink(image)
                if job in WRITES:
                    os.unlink(raw)


def show(figures, targets):
    heads = ["", "", "raw file", "cowfs image", "ratio", "target", ""]
    rows = []

    def line(title, raw, cowfs, job, least=None):
        cells, ratio = figures.row(title, raw, cowfs, job)
        mark = ["", ""]
        if least is not None:
            mark = [f">= {least:.2f}", targets.check(f"{title}: {ratio:.2f}", ratio >= least)]
        rows.append(cells + mark)

    for job in JOBS:
        line(f"plain loop, {job.name}", "raw", "cowfs", job, 0.6)
    line(f"direct loop, {RANDOM_READ.name}, against raw under a plain loop", "raw", "cowfs direct", RANDOM_READ, 1 / 3)
    for job in JOBS:
        line(f"direct loop, {job.name}", "raw direct", "cowfs direct", job)
    for job in READS:
        line(f"plain loop, {job.name}, pages scattered", "raw scattered", "cowfs scattered", job)
    for job in READS:
        line(f"plain loop, {job.name}, chunks of the base", "raw", "base", job)
        line(f"direct loop, {job.name}, chunks of the base", "raw direct", "base direct", job)
    for direct, title in ((False, "plain loop"), (True, "direct loop")):
        for job in [JOBS[0], *WRITES]:
            line(f"{title}, {job.name}, first touch", f"raw first {direct}", f"cowfs first {direct}", job)
    table(heads, rows)


def tuning(directory):
    """What the kernel was told of the mount's pages: it explains buffered figures more than anything else."""
    device = os.stat(directory).st_dev
    folder = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}"
    values = []
    for name in ("max_ratio", "strict_limit", "read_ahead_kb"):
        with contextlib.suppress(OSError), open(f"{folder}/{name}", encoding="ascii") as file:
            values.append(f"{name} {file.read().strip()}")
    return ", ".join(values)


def run(directory, targets, rounds, size, seconds, options):
    needed = 9 * size
    if shutil.disk_usage(directory).free < needed:
        raise RuntimeError(f"{directory}: needs {needed >> 20} MiB of free space")
    print(f"Speed: files of {size >> 20} MiB, {rounds} rounds of {seconds} s, median (min..max)")
    figures = Figures()
    paths = make_files(directory, size)
    mount_options = ["-o", options] if options else []
    with mounted(paths[0], os.path.join(directory, "mnt"), "--chunk-size", "4K", *mount_options) as mount:
        print(f"Mounted with {' '.join(mount_options) or 'no options'}: {tuning(mount.directory)}", flush=True)
        measure_warm(mount, paths, figures, rounds, seconds)
        measure_first_touch(mount, directory, size, figures, rounds)
    show(figures, targets)
