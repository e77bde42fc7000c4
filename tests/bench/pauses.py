"""How long machines wait when the server is killed or replaced, with 100 images open and under load."""

import contextlib
import json
import mmap
import os
import random
import signal
import statistics
import subprocess
import threading
import time

from machine import COWFS, command, loop_device, mounted
from report import table

IMAGES = 100
SIZE = 256 << 20
WRITES = 64  # to each image beforehand, in as many places
WAYS = ("kernel", "slots")


class Probe:
    """Reads 4 KiB again and again, past the kernel's cache, and remembers when each read returned."""

    def __init__(self, path):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        self.buffer = mmap.mmap(-1, mmap.PAGESIZE)
        self.returned, self.stop, self.failure = [], False, None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        rng = random.Random(1)
        try:
            while not self.stop:
                os.preadv(self.descriptor, [self.buffer], rng.randrange(SIZE >> 12) << 12)
                self.returned.append(time.monotonic())
        except OSError as error:
            self.failure = error

    def end(self):
        self.stop = True
        self.thread.join()
        os.close(self.descriptor)
        if self.failure:
            raise RuntimeError(f"a read failed: {self.failure}")

    def longest_wait(self, start, end):
        """The longest time from one return to the next of those that reach into this time."""
        times = [each for each in self.returned if start - 0.2 <= each <= end]
        return max(after - before for before, after in zip(times, times[1:]))


@contextlib.contextmanager
def load(path):
    """Direct writes with verification; a wrong byte or an error is an exception at the end."""
    with loop_device(path, True) as device:
        job = subprocess.Popen(["fio", "--name=load", f"--filename={device}", "--rw=randwrite", "--bs=4k", "--direct=1",
                                "--ioengine=libaio", "--iodepth=16", "--size=64m", "--verify=crc32c",
                                "--verify_backlog=1024", "--verify_fatal=1", "--verify_dump=0",
                                "--verify_state_save=0", "--time_based", "--runtime=3600", "--thread"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               cwd="/")
        try:
            yield
            if job.poll() is not None:
                raise RuntimeError(f"fio has ended: {job.stdout.read()[-2000:]}")
        finally:
            job.send_signal(signal.SIGINT)
            text = job.communicate()[0]
        if "err= 0" not in text:
            raise RuntimeError(f"fio: {text[-2000:]}")


def facts(directory):
    return json.loads(command(COWFS, "info", "--json", directory))


def wait_for_restart(directory, restarts):
    end = time.monotonic() + 30
    while facts(directory)["restarts"] < restarts:
        if time.monotonic() > end:
            raise RuntimeError(f"{directory}: no server came after one that was killed")
        time.sleep(0.02)


def disturb(mount, way, count):
    """Does it `count` times; returns when each began and was over."""
    rng, times = random.Random(2), []
    for _ in range(count):
        time.sleep(rng.uniform(0.3, 0.6))
        now = facts(mount.directory)
        start = time.monotonic()
        if way == "killed":
            os.kill(now["server_pid"], signal.SIGKILL)
            wait_for_restart(mount.directory, now["restarts"] + 1)
        elif way == "replaced":
            command(COWFS, "restart", mount.directory)
        else:
            time.sleep(0.1)
        times.append((start, time.monotonic() + 0.05))
    return times


def run(directory, targets, count):
    print(f"Waiting of machines, with {IMAGES} images open and one being written to, ms: the longest time between two "
          "answers")
    base = os.path.join(directory, "base-pauses.img")
    with open(base, "wb") as file:
        file.truncate(SIZE)
    rows = []
    for resend in WAYS:
        with contextlib.ExitStack() as ends:
            mount = ends.enter_context(mounted(base, os.path.join(directory, f"mnt-{resend}"), "--store",
                                               os.path.join(directory, f"store-{resend}"), "-o", f"resend={resend}"))
            rng = random.Random(3)
            for index in range(IMAGES):
                descriptor = os.open(mount.path(f"dom{index}.img"), os.O_RDWR | os.O_CREAT, 0o600)
                ends.callback(os.close, descriptor)
                for _ in range(WRITES):
                    os.pwrite(descriptor, b"x" * 4096, rng.randrange(SIZE >> 12) << 12)
                os.fsync(descriptor)
            os.close(os.open(mount.path("load.img"), os.O_RDWR | os.O_CREAT, 0o600))
            ends.enter_context(load(mount.path("load.img")))
            for what in ("left alone", "killed", "replaced"):
                probe = Probe(mount.path("dom0.img"))
                try:
                    times = disturb(mount, what, count)
                finally:
                    probe.end()
                waits = sorted(probe.longest_wait(*each) * 1e3 for each in times)
                middle = statistics.median(waits)
                mark = ("", "") if what == "left alone" else ("< 200", targets.check(
                    f"waiting, server {what}, {resend}: {middle:.0f} ms", middle < 200))
                rows.append([f"{what}, resend={resend}", len(waits), f"{middle:.1f}",
                             f"{statistics.quantiles(waits, n=100)[98]:.1f}", f"{waits[-1]:.1f}", *mark])
    table(["the server is", "times", "median", "99 %", "max", "target", ""], rows)
