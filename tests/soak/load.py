"""Many images under mixed load, with remounts and deaths of the server: no wrong byte, no leak."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time

import machine
from stamps import BLOCK, Stamps

IMAGES = 32
SIZE = 16 << 20  # of the base; fio has the lower half of an image, the stamps have the upper
BUSY = 4  # images of each kind in a round
FEW_DESCRIPTORS_LATER = 30  # seconds; an idle image is closed after some
MOST_GROWTH = 64 << 20
LEAKS_ONLY = 3  # of cowfs check


@contextlib.contextmanager
def host_file_system(directory, kind):
    image, point = os.path.join(directory, f"{kind}.host"), os.path.join(directory, kind)
    with open(image, "wb") as file:
        file.truncate(4 << 30)
    machine.command(f"mkfs.{kind}", "-q", "-F" if kind == "ext4" else "-f", image)
    os.mkdir(point)
    machine.command("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        end = time.monotonic() + 60
        while subprocess.run(["umount", point], stderr=subprocess.DEVNULL, check=False).returncode:
            if time.monotonic() > end:  # a server that cannot end, say
                subprocess.run(["umount", "--lazy", point], check=False)
                break
            time.sleep(0.2)
        os.remove(image)


class Server:
    """The mount under test, which is taken away and put back."""

    def __init__(self, base, directory):
        self.base, self.directory = base, directory
        os.makedirs(directory, exist_ok=True)
        self.up()

    def up(self):
        machine.command(machine.COWFS, "mount", self.base, self.directory, "--log-file", self.directory + ".log")
        mount = machine.Mount(self.directory)
        self.pid, self.keeper = mount.server, mount.keeper
        self.descriptors = self.count_descriptors()
        self.memory = None

    def down(self):
        machine.command(machine.COWFS, "umount", self.directory)

    def kill(self):
        """As a crash of the host ends them: the mount is dead then."""
        os.kill(self.keeper, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def path(self, image):
        return os.path.join(self.directory, image)

    def count_descriptors(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def check_leaks(self):
        """At rest there are as many descriptors as at the start, and hardly more memory than after the first round."""
        end = time.monotonic() + FEW_DESCRIPTORS_LATER
        while self.count_descriptors() > self.descriptors:
            if time.monotonic() > end:
                names = sorted(os.readlink(entry.path) for entry in os.scandir(f"/proc/{self.pid}/fd"))
                raise RuntimeError(f"leaked descriptors: {self.descriptors} at the start, now {names}")
            time.sleep(0.2)
        now = sum(machine.own_memory(self.pid))
        self.memory = self.memory or now
        if now > self.memory + MOST_GROWTH:
            raise RuntimeError(f"memory grows: {self.memory >> 20} MiB after one round, now {now >> 20} MiB")


@contextlib.contextmanager
def way_in(path, way):
    """The path to write to: the image itself, or a loop device over it. Gives the device back also if that is dead."""
    if way == "file":
        yield path
        return
    device = machine.command("losetup", "--find", "--show", f"--direct-io={'on' if way == 'direct' else 'off'}",
                             path).strip()
    try:
        yield device
    finally:
        machine.command("losetup", "--detach", device)
        backing = f"/sys/block/{os.path.basename(device)}/loop/backing_file"
        end = time.monotonic() + 60
        while os.path.exists(backing):
            if time.monotonic() > end:
                raise RuntimeError(f"{device}: is still in use")
            time.sleep(0.02)


def close(descriptor):
    with contextlib.suppress(OSError):  # whose server is dead; the descriptor is closed all the same
        os.close(descriptor)


def fio(path, seed, *more):
    return ["fio", "--name=soak", f"--filename={path}", f"--randseed={seed}", "--rw=randwrite", "--bsrange=1k-64k",
            "--bs_unaligned=0", "--blockalign=1k", "--size=" + str(SIZE // 2), "--ioengine=libaio", "--iodepth=8",
            "--verify=crc32c", "--verify_fatal=1", "--verify_dump=0", "--verify_state_save=0", "--fallocate=none",
            "--end_fsync=1", "--thread", *more]


def run_fio(path, seed, failures, *more):
    done = subprocess.run(fio(path, seed, *more), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          cwd="/")
    if done.returncode:
        failures.append(f"fio on {path}: {done.stderr.strip()} {done.stdout.strip()[-2000:]}")


def run_stamps(path, stamps, rng, stop, failures):
    try:
        descriptor = os.open(path, os.O_RDWR)
        try:
            while not stop.is_set():
                stamps.change(descriptor, rng)
                if rng.random() < 0.05:
                    stamps.flush(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        failures.append(f"{stamps.name}: {error}")


def check_stamps(server, stamps):
    for each in stamps:
        descriptor = os.open(server.path(each.name), os.O_RDWR)
        try:
            each.check(descriptor)
        finally:
            os.close(descriptor)


def one_round(server, names, stamps, rng, ending):
    """Load for some seconds, then the ending: rest, remount or kill."""
    chosen = rng.sample(range(len(names)), 2 * BUSY)
    failures, stop = [], threading.Event()
    with contextlib.ExitStack() as ways:
        jobs, threads, descriptors = [], [], []
        for number in chosen[:BUSY]:
            path = ways.enter_context(way_in(server.path(names[number]), rng.choice(("plain", "direct", "file"))))
            jobs.append((number, rng.randrange(1 << 31)))
            threads.append(threading.Thread(target=run_fio, args=(path, jobs[-1][1], failures)))
        for number in chosen[BUSY:]:
            path = ways.enter_context(way_in(server.path(names[number]), rng.choice(("plain", "direct", "file"))))
            descriptor = os.open(path, os.O_RDONLY)
            ways.callback(close, descriptor)  # before the device is given back
            descriptors.append((descriptor, stamps[number]))
            threads.append(threading.Thread(target=run_stamps, args=(path, stamps[number],
                                                                     random.Random(rng.randrange(1 << 31)), stop,
                                                                     failures)))
        for thread in threads:
            thread.start()
        if ending == "kill":
            time.sleep(rng.uniform(0.5, 3))
            server.kill()
        for thread in threads[:BUSY]:
            thread.join()
        stop.set()
        for thread in threads:
            thread.join()
        if ending != "kill" and not failures:
            for descriptor, each in descriptors:
                each.flush(descriptor)
    if ending == "kill":
        machine.command(machine.COWFS, "umount", server.directory)
        server.up()
    elif failures:
        raise RuntimeError("; ".join(failures))
    else:
        if ending == "remount":
            server.down()
            server.up()
        for number, seed in jobs:
            run_fio(server.path(names[number]), seed, failures, "--verify_only")
        if failures:
            raise RuntimeError("after the ending: " + "; ".join(failures))
    check_stamps(server, stamps)
    server.check_leaks()


def check_store(base):
    """No damage. A server that was killed leaves the space of what it had not committed; that can be given back."""
    store = base + ".cowfs"
    found = subprocess.run([machine.COWFS, "check", store], capture_output=True, text=True, check=False)
    if found.returncode not in (0, LEAKS_ONLY):
        raise RuntimeError(f"cowfs check: exit status {found.returncode}: {found.stdout[-2000:]}{found.stderr}")
    if found.returncode == LEAKS_ONLY:
        machine.command(machine.COWFS, "check", "--repair", store)
    machine.command(machine.COWFS, "check", store)


def run(directory, kind, seed, seconds):
    rng = random.Random(seed)
    end = time.monotonic() + seconds
    endings = {"rest": 0, "remount": 0, "kill": 0}
    with host_file_system(directory, kind) as host:
        base = os.path.join(host, "base.img")
        content = rng.randbytes(SIZE)
        with open(base, "wb") as file:
            file.write(content)
        server = Server(base, os.path.join(directory, f"{kind}.vms"))
        try:
            names = [f"dom{i}" for i in range(IMAGES)]
            machine.command(machine.COWFS, "create", *(server.path(name) for name in names))
            stamps = [Stamps(name, SIZE // 2 // BLOCK, SIZE // BLOCK, content) for name in names]
            while time.monotonic() < end or 0 in endings.values():
                ending = min(endings, key=endings.get) if 0 in endings.values() else rng.choice(list(endings))
                one_round(server, names, stamps, rng, ending)
                endings[ending] += 1
            server.down()
        except BaseException:
            subprocess.run(["umount", "--lazy", server.directory], check=False)
            raise
        check_store(base)
        with open(base, "rb") as file:
            if file.read() != content:
                raise RuntimeError("the base was written to")
    print(f"load: {kind}: {IMAGES} images, {sum(endings.values())} rounds:",
          ", ".join(f"{count} {ending}" for ending, count in endings.items()) + ": no wrong byte, no leak", flush=True)
