"""Allocation policies: does an image read back in order that was written while others were?

Eight images are written sequentially at once, a thread each, in turns of 1 MiB, and made durable. Then they are read
one after the other from the disk, through the mount, each with nothing in the page cache: how it lies there is what is
measured, and all eight together, since the speed of a disk varies.
Policies take turns within each round, each with a store of its own.
"""

import concurrent.futures
import os
import time

from machine import command, drop, mounted
from report import spread, table

IMAGES = 8
POLICIES = ("sparse", "pool", "qcow2")


def write_image(path, size, seed):
    block = os.urandom(1 << 20)
    with open(path, "r+b", buffering=0) as image:
        for offset in range(0, size, 1 << 20):
            image.write(seed.to_bytes(8, "little") + offset.to_bytes(8, "little") + block[16:])
        os.fsync(image.fileno())


def read_image(path):
    """Seconds."""
    begin = time.monotonic()
    with open(path, "rb", buffering=0) as image:
        while image.read(1 << 20):
            pass
    return time.monotonic() - begin


def cow_files(store):
    for folder, _, names in os.walk(store):
        for name in names:
            if name.endswith((".cow", ".qcow2")) or name == "pool":
                yield os.path.join(folder, name)


def measure(directory, base, policy, size, number):
    store = os.path.join(directory, f"{policy}-{number}.cowfs")
    options = ["--store", store, "--policy", policy, "--chunk-size", "64K"]
    if policy == "pool":
        options += ["--pool-size", str(2 * IMAGES * size)]
    with mounted(base, os.path.join(directory, "mnt"), *options) as mount:
        paths = [mount.path(f"dom{i}") for i in range(IMAGES)]
        for path in paths:
            command("truncate", "-s", str(size), path)
        with concurrent.futures.ThreadPoolExecutor(IMAGES) as threads:
            list(threads.map(write_image, paths, [size] * IMAGES, range(IMAGES)))
        seconds = 0
        for path in paths:
            # What was read ahead for another image too.
            for cached in (*paths, *cow_files(store)):
                drop(cached)
            seconds += read_image(path)
    command("rm", "-rf", store)
    return IMAGES * size / seconds


def run(directory, targets, rounds, size):
    base = os.path.join(directory, "base.img")
    with open(base, "wb") as file:
        file.truncate(size)
    print(f"Policies: {IMAGES} images of {size >> 20} MiB written at once, each read back from the disk; {rounds} rounds, "
          "median (min..max)", flush=True)
    speeds = {policy: [] for policy in POLICIES}
    for number in range(rounds):
        for policy in POLICIES:
            speeds[policy].append(measure(directory, base, policy, size, number))
    ratio = sorted(speeds["pool"])[rounds // 2] / sorted(speeds["sparse"])[rounds // 2]
    table(["", "", *POLICIES, "ratio", "target", ""],
          [["seq read 1M, written with seven others", "MiB/s", *(spread(speeds[policy], 1 / 2**20) for policy in POLICIES),
            f"{ratio:.2f}", ">= 0.70",
            targets.check(f"pool read back against sparse: {ratio:.2f}", ratio >= 0.7)]])
