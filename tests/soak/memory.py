"""The trap of a disk that is served from user space: whoever must write pages back to get memory needs memory for it.

Server, loop devices and machines share 512 MiB of memory (a cgroup); the machines dirty pages as fast as they can
through buffered loop devices. At all times at least one of them must move.
"""

import contextlib
import ctypes
import mmap
import os
import shutil
import signal
import struct
import subprocess
import time

import machine

LIMIT = 512 << 20
MACHINES = 8
SIZE = 128 << 20
PIECE = 1 << 20
LOOK = 0.05  # seconds between two looks at the machines


def own_groups():
    """The directories of this process's memory cgroup, v1 and v2, where they are mounted."""
    mounts = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            words, rest = (part.split() for part in line.split(" - "))
            if rest[0] == "cgroup2":
                mounts["v2"] = words[4]
            elif rest[0] == "cgroup" and "memory" in rest[2].split(","):
                mounts["v1"] = words[4]
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        for line in lines:
            number, controllers, path = line.rstrip("\n").split(":", 2)
            version = "v2" if number == "0" else "v1" if "memory" in controllers.split(",") else None
            if version in mounts:
                yield version, mounts[version] + path.rstrip("/")


@contextlib.contextmanager
def limited_group():
    """A cgroup with the limit, or None where it cannot be made."""
    group, limit = None, None
    for version, own in own_groups():
        name = "memory.max" if version == "v2" else "memory.limit_in_bytes"
        # Under v2 a group with processes has no groups with controllers below it, but for the root.
        for parent in (own, os.path.dirname(own)) if version == "v2" else (own,):
            with contextlib.suppress(OSError):
                path = f"{parent}/cowfs-soak-{os.getpid()}"
                os.mkdir(path)
                try:
                    with open(f"{path}/{name}", "w", encoding="ascii") as file:
                        file.write(str(LIMIT))
                    group, limit = path, f"{path}/{name}"
                except OSError:
                    os.rmdir(path)
            if group:
                break
        if group:
            break
    try:
        yield group
    finally:
        if group:
            with contextlib.suppress(OSError):  # who stands still is let go
                with open(limit, "w", encoding="ascii") as file:
                    file.write("max" if limit.endswith(".max") else "-1")
            end = time.monotonic() + 60
            while True:
                try:
                    os.rmdir(group)
                    break
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.1)


def enter(group):
    with open(f"{group}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))


def command_in(group, *words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                          preexec_fn=lambda: enter(group))
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def start_machine(group, device, counters, number):
    """A process that writes the device over and over and counts the pieces."""
    pid = os.fork()
    if pid:
        return pid
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)
        enter(group)
        descriptor = os.open(device, os.O_WRONLY)
        count = 0
        while True:
            os.pwrite(descriptor, bytes([count % 256]) * PIECE, count * PIECE % SIZE)
            count += 1
            struct.pack_into("<Q", counters, 8 * number, count)
    finally:
        os._exit(1)


def watch(counters, machines, seconds, window):
    """The longest time in which no machine moved; RuntimeError if it is longer than the window."""
    begin = moved = time.monotonic()
    longest, last = 0, bytes(8 * MACHINES)
    while time.monotonic() < begin + seconds:
        time.sleep(LOOK)
        now, state = time.monotonic(), bytes(counters[:8 * MACHINES])
        longest = max(longest, now - moved)
        if state != last:
            last, moved = state, now
        if now - moved > window:
            raise RuntimeError(f"no machine moved for {window} s under {LIMIT >> 20} MiB")
        for pid in machines:
            if os.waitpid(pid, os.WNOHANG)[0]:
                machines.remove(pid)
                raise RuntimeError("a machine ended under the memory limit")
    return longest, sum(struct.unpack(f"<{MACHINES}Q", last)) * PIECE


def one_mount(directory, group, option, seconds, window):
    needed = MACHINES * SIZE + (1 << 30)
    if shutil.disk_usage(directory).free < needed:
        raise RuntimeError(f"{directory}: needs {needed >> 20} MiB of free space")
    base, point = os.path.join(directory, f"{option}.img"), os.path.join(directory, f"{option}.vms")
    with open(base, "wb") as file:
        file.truncate(SIZE)
    os.mkdir(point)
    command_in(group, machine.COWFS, "mount", base, point, "-o", option, "--log-file", point + ".log")
    devices, machines = [], []
    counters = mmap.mmap(-1, mmap.PAGESIZE)
    try:
        names = [os.path.join(point, f"dom{i}") for i in range(MACHINES)]
        machine.command(machine.COWFS, "create", *names)
        for name in names:
            devices.append(command_in(group, "losetup", "--find", "--show", name))
        for number, device in enumerate(devices):
            machines.append(start_machine(group, device, counters, number))
        longest, written = watch(counters, machines, seconds, window)
        print(f"memory: -o {option}: {written / seconds / (1 << 20):.0f} MiB/s, longest standstill {longest:.2f} s",
              flush=True)
    except RuntimeError:
        # Whoever waits for the server is told that there is none any more: by force is to abort the connection.
        subprocess.run(["umount", "--force", point], stderr=subprocess.DEVNULL, check=False)
        raise
    finally:
        for pid in machines:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=False)
        if subprocess.run([machine.COWFS, "umount", point], check=False).returncode:
            subprocess.run(["umount", "--lazy", point], check=False)
    # What the next mount needs is given back: on a full disk machines stand still as well, and for another reason.
    os.unlink(base)
    shutil.rmtree(base + ".cowfs")


def may_flush():
    """Whether a process that runs here may be one that others' writeback waits for (prctl(2), PR_SET_IO_FLUSHER)."""
    pid = os.fork()
    if pid == 0:
        os._exit(ctypes.CDLL(None).prctl(57, 1, 0, 0, 0) != 0)
    return os.waitpid(pid, 0)[1] == 0


def run(directory, seconds, window):
    """Says so on standard output where it cannot be tried."""
    if not may_flush():
        print("memory: skipped: PR_SET_IO_FLUSHER is refused here (it needs CAP_SYS_RESOURCE), and without it a server "
              "under a memory limit can come to wait for its own clients", flush=True)
        return
    with limited_group() as group:
        if group is None:
            print("memory: skipped: no cgroup with a memory limit can be made here", flush=True)
            return
        for option in ("tune", "no_tune"):
            one_mount(directory, group, option, seconds, window)
