"""How long it takes to make an image, and to mount a store with very many of them."""

import os
import statistics
import time

from machine import COWFS, command, mounted
from report import spread, table


def timed(action, *arguments):
    start = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - start


def touch(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def run(directory, targets, images, rounds):
    print(f"Making {images} images, and mounting the store that has them")
    base, mount_point = os.path.join(directory, "base-small.img"), os.path.join(directory, "mnt-start")
    with open(base, "wb") as file:
        file.write(os.urandom(4 << 20))
        file.truncate(1 << 30)
    with mounted(base, mount_point) as mount:
        making = [timed(touch, mount.path(f"dom{index}.img")) for index in range(images)]
        commands = [timed(command, COWFS, "create", mount.path(f"extra{index}.img")) for index in range(20)]
        listing = timed(os.listdir, mount_point)
    mounting = []
    for _ in range(rounds):
        start = time.perf_counter()
        with mounted(base, mount_point) as mount:
            # mounted() has asked for the server's pid too, so this is the time to a served request.
            mounting.append(time.perf_counter() - start)
            if len(os.listdir(mount_point)) != images + 20:
                raise RuntimeError(f"{mount_point}: images are missing after a remount")
    middle = statistics.median(making)
    slowest = statistics.quantiles(making, n=100)[98]
    rows = [
        ["an image made, ms", spread(making, 1e3), f"99 % under {slowest * 1e3:.2f}",
         "< 5 ms", targets.check(f"an image made: {middle * 1e3:.2f} ms", middle < 0.005)],
        ["cowfs create, the whole command, ms", spread(commands, 1e3), "", "", ""],
        [f"{images} names listed, ms", f"{listing * 1e3:.1f}", "", "", ""],
        [f"mounted with {images} images, s", spread(mounting), "",
         "< 1 s", targets.check(f"mounted: {max(mounting):.2f} s", max(mounting) < 1)],
    ]
    table(["", "median (min..max)", "", "target", ""], rows)
