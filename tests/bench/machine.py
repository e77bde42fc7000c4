"""What the benchmark borrows from the machine, each as a context manager that gives it back."""

import contextlib
import json
import mmap
import os
import random
import shutil
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
COWFS = os.environ.get("COWFS") or os.path.join(ROOT, "build", "cmd", "cowfs")


def command(*words):
    """Runs a command and returns its standard output; says what went wrong before it gives up."""
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: exit status {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


@contextlib.contextmanager
def work_directory(parent):
    path = tempfile.mkdtemp(prefix="cowfs-bench.", dir=parent)
    try:
        yield os.path.realpath(path)
    finally:
        # Whatever could not be unmounted must not be emptied through its mount.
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            if not any(line.split()[1].startswith(path + "/") for line in mounts):
                shutil.rmtree(path)


class Mount:
    """A mounted cowfs: its directory and its server's pid."""

    def __init__(self, directory):
        self.directory = directory
        facts = json.loads(command(COWFS, "info", "--json", directory))
        self.server, self.keeper = int(facts["server_pid"]), int(facts["keeper_pid"])

    def path(self, name):
        return os.path.join(self.directory, name)


@contextlib.contextmanager
def mounted(base, directory, *options):
    os.makedirs(directory, exist_ok=True)
    command(COWFS, "mount", base, directory, *options)
    try:
        yield Mount(directory)
    finally:
        # A lazy umount(8) ends the server as well, once nothing uses the mount any more.
        if subprocess.run([COWFS, "umount", directory], stdin=subprocess.DEVNULL, check=False).returncode:
            subprocess.run(["umount", "--lazy", directory], check=False)


@contextlib.contextmanager
def loop_device(path, direct_io):
    device = command("losetup", "--find", "--show", f"--direct-io={'on' if direct_io else 'off'}", path).strip()
    try:
        if direct_io and command("losetup", "--list", "--noheadings", "--output", "DIO", device).strip() != "1":
            raise RuntimeError(f"{device}: {path}: its file system does not do direct I/O (choose another with --dir)")
        yield device
    finally:
        flush(device)
        command("losetup", "--detach", device)


def flush(path):
    """Brings what was written to disk, so that the next measurement does not wait for it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop(path):
    """Takes a file out of the page cache."""
    with open(path, "rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(path):
    """Brings a file into the page cache."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def read_scattered(path):
    """Brings a file into the page cache page by page in random order, so that each page lies by itself in memory.

    Read in order, ext4 and XFS keep a file in large folios of neighbouring pages; under FUSE there are single pages.
    """
    pages = list(range(os.path.getsize(path) // mmap.PAGESIZE))
    random.Random(1).shuffle(pages)
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for page in pages:
            os.pread(file.fileno(), 1, page * mmap.PAGESIZE)


def own_memory(pid):
    """Bytes of memory of one process: (PSS, memfd pages). A memfd's pages count as memfd only, mapped or not."""
    pss, counts = 0, True
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            field = line.split(maxsplit=5)
            if field[0] == "Pss:":
                pss += int(field[1]) * 1024 if counts else 0
            elif not field[0].endswith(":"):
                counts = not (len(field) > 5 and field[5].startswith("/memfd:"))
    memfds = {}
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(entry.path).startswith("/memfd:"):
                facts = os.stat(entry.path)
                memfds[facts.st_ino] = facts.st_blocks * 512
    return pss, sum(memfds.values())
