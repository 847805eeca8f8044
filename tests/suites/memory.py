"""A client that may use 256 MiB of memory, page cache included, writes and reads a file of 6 GiB."""

import functools
import hashlib
import os
import random
import re
import time
from pathlib import Path

from harness import Skipped, expect

LIMIT = int(os.environ.get("SUITE_LIMIT_MIB", "256")) << 20
FILE = int(os.environ.get("SUITE_FILE_GIB", "6")) << 30
PIECE = 4 << 20


def cases(report, cluster, faults):
    group = MemoryGroup()
    cluster.at_end.append(group.remove)
    mount = cluster.mount("mnt", wrapper=group.wrapper())
    report.case("write", functools.partial(write, mount, group), deadline=1800)
    report.case("read-written", functools.partial(read, mount, group), deadline=1800)
    report.case("read-cold", functools.partial(read_cold, mount, group), deadline=1800)
    report.case("read-cached", functools.partial(read, mount, group), deadline=1800)
    report.case("rewrite-some", functools.partial(rewrite_some, mount, group), deadline=1800)


class MemoryGroup:
    """A memory cgroup, of version 1 or 2, with the limit."""

    def __init__(self):
        first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        self.first = (first / "memory.limit_in_bytes").exists()
        self.folder = (first if self.first else second) / f"torchfs-suite-{os.getpid()}"
        try:
            self.folder.mkdir()
            (self.folder / ("memory.limit_in_bytes" if self.first else "memory.max")).write_text(str(LIMIT))
        except OSError as error:
            raise Skipped(f"no memory cgroup can be made: {error}") from None

    def wrapper(self):
        """What comes before a command so that it runs in the group."""
        return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', self.folder / "cgroup.procs"]

    def kills(self):
        text = (self.folder / ("memory.oom_control" if self.first else "memory.events")).read_text()
        return int(re.search(r"^oom_kill (\d+)", text, re.MULTILINE)[1])

    def peak(self):
        file = self.folder / ("memory.max_usage_in_bytes" if self.first else "memory.peak")
        return int(file.read_text()) >> 20 if file.exists() else 0

    def remove(self):
        self.folder.rmdir()


def piece(number, salt=b""):
    """4 MiB that nobody can compress, guess or confuse with another piece, quickly made."""
    return hashlib.shake_128(b"%d " % number + salt).digest(1 << 16) * (PIECE >> 16)


def told(mount, group, start):
    """How fast it went, and that the client lives and kept within its limit."""
    expect(mount.process.poll() is None and group.kills() == 0, f"the client was killed ({group.kills()} for memory)")
    status = Path(f"/proc/{mount.process.pid}/status").read_text()
    resident = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) >> 10
    return f"{FILE / 1e6 / (time.monotonic() - start):.0f} MB/s, resident {resident} MiB, group {group.peak()} MiB at most"


def write(mount, group):
    start = time.monotonic()
    with open(mount.point / "large", "wb", buffering=0) as file:
        for number in range(FILE // PIECE):
            expect(file.write(piece(number)) == PIECE, "a short write")
    return told(mount, group, start)


def read(mount, group, salted=frozenset()):
    start = time.monotonic()
    with open(mount.point / "large", "rb", buffering=0) as file:
        for number in range(FILE // PIECE):
            content = b"".join(iter_exactly(file))
            expect(content == piece(number, b"again" if number in salted else b""), f"piece {number} is another one")
        expect(file.read(1) == b"", "the file is longer than what was written")
    return told(mount, group, start)


def iter_exactly(file):
    """What makes up one piece; less at the end of the file."""
    left = PIECE
    while left and (part := file.read(left)):
        left -= len(part)
        yield part


def read_cold(mount, group):
    mount.remount()
    return read(mount, group)


def rewrite_some(mount, group):
    """A change here and there in a file that is not in the cache costs what was changed, not the file."""
    mount.remount()
    changed = frozenset(random.Random(1).sample(range(FILE // PIECE), 24))
    with open(mount.point / "large", "r+b", buffering=0) as file:
        for number in sorted(changed):
            file.seek(number * PIECE)
            expect(file.write(piece(number, b"again")) == PIECE, "a short write")
    mount.remount()
    return read(mount, group, changed)
