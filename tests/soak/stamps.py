"""An image's content as writes, trims and flushes make it, remembered so that each 4 KiB block can be judged later.

A block is a number, its version, over and over, with its place: each 512 bytes tell where they belong and when they
were written. After a crash each of them may show the version of the last flush or any later one (I3, I4).
"""

import contextlib
import ctypes
import os
import struct

BLOCK = 4096
SECTOR = 512
ZERO = 0  # the version of a block that was trimmed

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def punch(descriptor, offset, length):
    if _libc.fallocate64(descriptor, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"fallocate: {os.strerror(code)}")


class Stamps:
    """The blocks [first, end) of one image."""

    def __init__(self, name, first, end, base):
        self.name, self.first, self.end, self.base = name, first, end, base
        self.version = 0
        self.possible = {}  # block: versions, the oldest that may be seen first; others are the base's
        self.doubtful = set()  # those with several

    def content(self, block, version):
        if version is None:
            return self.base[block * BLOCK:(block + 1) * BLOCK]
        if version == ZERO:
            return bytes(BLOCK)
        return struct.pack("<QQ", version, block) * (BLOCK // 16)

    def change(self, descriptor, rng):
        """One write or trim of some neighbouring blocks."""
        count = rng.choice((1, 1, 1, 2, 8, 64))
        start = rng.randrange(self.first, self.end - count)
        self.version += 1
        version = ZERO if rng.random() < 0.2 else self.version
        for block in range(start, start + count):
            # Before the call: a part of it may have been done when it fails.
            self.possible.setdefault(block, [None]).append(version)
            self.doubtful.add(block)
        if version == ZERO:
            punch(descriptor, start * BLOCK, count * BLOCK)
        else:
            data = b"".join(self.content(block, version) for block in range(start, start + count))
            if os.pwrite(descriptor, data, start * BLOCK) != len(data):
                raise RuntimeError(f"{self.name}: short write")

    def flush(self, descriptor):
        os.fsync(descriptor)
        self.settle()

    def settle(self):
        """Nothing but the newest version may be seen from now on."""
        for block in self.doubtful:
            self.possible[block] = self.possible[block][-1:]
        self.doubtful.clear()

    def check(self, descriptor):
        """Compares all blocks. Of those with several possible versions, what is seen is what holds from now on."""
        with contextlib.suppress(AttributeError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for block in range(self.first, self.end):
            seen = os.pread(descriptor, BLOCK, block * BLOCK)
            versions = self.possible.get(block, [None])
            wanted = [self.content(block, version) for version in versions]
            for at in range(0, BLOCK, SECTOR):
                if seen[at:at + SECTOR] not in {content[at:at + SECTOR] for content in wanted}:
                    raise RuntimeError(
                        f"{self.name}: wrong bytes at offset {block * BLOCK + at}: {seen[at:at + 16].hex()}, which is "
                        f"none of the versions {versions}")
            if len(versions) > 1:
                whole = [version for version, content in zip(versions, wanted) if content == seen]
                if not whole:  # parts of several; written anew, to have one again
                    self.version += 1
                    os.pwrite(descriptor, self.content(block, self.version), block * BLOCK)
                    whole = [self.version]
                self.possible[block] = whole[-1:]
        os.fsync(descriptor)
        self.doubtful.clear()
