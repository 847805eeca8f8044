"""Two mounts of one cluster: random changes on either, compared with what a plain dictionary holds.

An open sees at once what was closed elsewhere; names and attributes may be old by a second (docs/semantics.md)."""

import functools
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

from cluster import STALE_SECONDS, Background
from harness import expect, python

SECONDS = int(os.environ.get("SUITE_COHERENCE_SECONDS", "120"))
NAMES = [f"{folder}/{name}" for folder in ("a", "b") for name in "stuvwxyz"]


def cases(report, cluster, faults):
    processes = [cluster.mount("mnt"), cluster.mount("other")]
    mounts = [process.point for process in processes]
    for seed in (1, 2):
        report.case(f"changes-{seed}", functools.partial(changes, mounts, seed), deadline=SECONDS * 4)
    report.case("counter", functools.partial(counter, mounts), deadline=SECONDS * 4)
    report.case("counter-naps", functools.partial(napping, processes, functools.partial(counter, mounts)), deadline=SECONDS * 4)
    report.case("mutex", functools.partial(mutex, mounts), deadline=SECONDS * 4)
    report.case("log", functools.partial(log, mounts), deadline=SECONDS * 4)
    report.case("checkpoint", functools.partial(checkpoint, mounts), deadline=SECONDS * 4)


class File:
    """What a file must hold, whatever its names are."""

    def __init__(self, content):
        self.content, self.bits, self.links = content, 0o644, 1


class Pair:
    """What both mounts must show, and when each name was changed last, and on which."""

    def __init__(self, mounts, seed):
        self.mounts, self.random, self.files, self.changed = mounts, random.Random(seed), {}, {}
        self.folders = [mount / f"changes-{seed}" for mount in mounts]
        for folder in "ab":
            os.makedirs(self.folders[0] / folder)
        time.sleep(STALE_SECONDS)

    def fresh(self, name, mount):
        """Whether this mount may still have an old idea of the name."""
        other, when = self.changed.get(name, (mount, 0))
        return other != mount and time.monotonic() - when < STALE_SECONDS

    def pick(self, mount, names):
        """A name that this mount must know the truth about."""
        known = [name for name in names if not self.fresh(name, mount)]
        return self.random.choice(known) if known else None

    def name_changed(self, name, mount):
        self.changed[name] = (mount, time.monotonic())

    def content(self):
        return self.random.randbytes(self.random.choice((0, 1, 100, 4096, 70_000, 300_000)))


def changes(mounts, seed):
    pair, done, end = Pair(mounts, seed), 0, time.monotonic() + SECONDS
    kinds = (replace, append, patch, cut, remove, rename, link, mode, look)
    while time.monotonic() < end:
        mount = pair.random.randrange(2)
        pair.random.choices(kinds, (4, 2, 2, 1, 2, 2, 1, 1, 6))[0](pair, mount)
        done += 1
        if done % 50 == 0:
            time.sleep(STALE_SECONDS)
            compare(pair)
    return f"{done} changes and looks"


def replace(pair, mount):
    if name := pair.pick(mount, NAMES):
        content = pair.content()
        with open(pair.folders[mount] / name, "wb") as file:
            file.write(content)
        if name in pair.files:
            pair.files[name].content = content
        else:
            pair.files[name] = File(content)
            pair.name_changed(name, mount)


def existing(pair, mount):
    return pair.pick(mount, sorted(pair.files))


def append(pair, mount):
    if name := existing(pair, mount):
        more = pair.content()
        with open(pair.folders[mount] / name, "ab") as file:
            file.write(more)
        pair.files[name].content += more


def patch(pair, mount):
    if name := existing(pair, mount):
        content, part = pair.files[name].content, pair.content()
        at = pair.random.randrange(len(content) + 1)
        with open(pair.folders[mount] / name, "r+b") as file:
            file.seek(at)
            file.write(part)
        pair.files[name].content = content[:at] + part + content[at + len(part):]


def cut(pair, mount):
    if name := existing(pair, mount):
        content = pair.files[name].content
        size = pair.random.randrange(len(content) + 5000)
        with open(pair.folders[mount] / name, "r+b") as file:
            file.truncate(size)
        pair.files[name].content = content[:size].ljust(size, b"\0")


def remove(pair, mount):
    if name := existing(pair, mount):
        os.unlink(pair.folders[mount] / name)
        pair.files.pop(name).links -= 1
        pair.name_changed(name, mount)


def rename(pair, mount):
    old, new = existing(pair, mount), pair.pick(mount, NAMES)
    # Of two names of one file rename(2) changes neither.
    if old and new and pair.files[old] is not pair.files.get(new):
        os.rename(pair.folders[mount] / old, pair.folders[mount] / new)
        if new in pair.files:
            pair.files[new].links -= 1
        pair.files[new] = pair.files.pop(old)
        pair.name_changed(old, mount)
        pair.name_changed(new, mount)


def link(pair, mount):
    old, new = existing(pair, mount), pair.pick(mount, NAMES)
    if old and new and new not in pair.files:
        os.link(pair.folders[mount] / old, pair.folders[mount] / new)
        pair.files[new] = pair.files[old]
        pair.files[new].links += 1
        pair.name_changed(new, mount)


def mode(pair, mount):
    if name := existing(pair, mount):
        bits = pair.random.choice((0o600, 0o644, 0o640, 0o755))
        os.chmod(pair.folders[mount] / name, bits)
        pair.files[name].bits = bits


def look(pair, mount):
    """Close-to-open: no waiting here."""
    if name := existing(pair, mount):
        with open(pair.folders[mount] / name, "rb") as file:
            found = file.read()
        expected = pair.files[name].content
        expect(found == expected, f"{name}: mount {mount} reads {len(found)} bytes, {len(expected)} were closed before")


def compare(pair):
    for mount, folder in enumerate(pair.folders):
        names = sorted(f"{sub}/{name}" for sub in "ab" for name in os.listdir(folder / sub))
        expect(names == sorted(pair.files), f"mount {mount} lists {names}, there are {sorted(pair.files)}")
        for name, file in pair.files.items():
            about, told = os.stat(folder / name), f"{name}: mount {mount} says"
            expect(about.st_size == len(file.content), f"{told} {about.st_size} bytes, not {len(file.content)}")
            expect(about.st_mode & 0o7777 == file.bits, f"{told} mode {about.st_mode:o}, not {file.bits:o}")
            expect(about.st_nlink == file.links, f"{told} {about.st_nlink} links, not {file.links}")
            expect((folder / name).read_bytes() == file.content, f"{name}: mount {mount} reads other bytes")


def counter(mounts):
    """A number that the mounts add one to in turns, closed each time: no turn may find an old one."""
    name, turns, end = f"counter-{time.monotonic()}", 0, time.monotonic() + SECONDS / 2
    (mounts[0] / name).write_text("0")
    time.sleep(STALE_SECONDS)
    while time.monotonic() < end:
        path = mounts[turns % 2] / name
        found = int(path.read_text())
        expect(found == turns, f"turn {turns} finds {found}")
        turns += 1
        path.write_text(str(turns))
    return f"{turns} turns"


MUTEX = """
import os, sys, time
folder, end, turns = sys.argv[1], time.monotonic() + float(sys.argv[2]), 0
lock, counter = os.path.join(folder, "lock"), os.path.join(folder, "counter")
def take():
    try:
        os.mkdir(lock)
        return True
    except FileExistsError:
        return False
while time.monotonic() < end:
    while not take():
        time.sleep(0.002)
    with open(counter) as file:
        number = int(file.read())
    with open(counter, "w") as file:
        file.write(str(number + 1))
    os.rmdir(lock)
    turns += 1
print(turns)
"""


def mutex(mounts):
    """Two programs on each mount add one to a number, behind a lock that is a folder: not one addition is lost."""
    (mounts[0] / "mutex").mkdir()
    (mounts[0] / "mutex" / "counter").write_text("0")
    time.sleep(STALE_SECONDS)
    with ThreadPoolExecutor() as pool:
        workers = [pool.submit(python, MUTEX, mount / "mutex", SECONDS / 2) for mount in 2 * mounts]
        turns = sum(int(worker.result()) for worker in workers)
    found = int((mounts[0] / "mutex" / "counter").read_text())
    expect(found == turns, f"{turns} were added and {found} are there")
    return f"{turns} turns"


class Naps(Background):
    """Mounts stop for a moment, one or the other, and go on with an old idea of what time it is."""

    def __init__(self, processes):
        super().__init__()
        self.processes = processes

    def round(self):
        process = random.choice(self.processes).process
        process.send_signal(signal.SIGSTOP)
        time.sleep(random.uniform(0.01, 2))
        process.send_signal(signal.SIGCONT)
        self.enough.wait(random.uniform(0.01, 0.5))


def napping(processes, work):
    naps = Naps(processes)
    naps.start()
    try:
        told = work()
    finally:
        rounds = naps.finish()
    return f"{told}, {rounds}"


def log(mounts):
    """Lines that are appended in turns, with fsync instead of close, and read through the other mount."""
    name, lines, end = "log", [], time.monotonic() + SECONDS / 4
    (mounts[0] / name).touch()
    time.sleep(STALE_SECONDS)
    with open(mounts[0] / name, "ab", buffering=0) as writer:
        while time.monotonic() < end:
            lines.append(b"line %d\n" % len(lines))
            writer.write(lines[-1])
            os.fsync(writer.fileno())
            found = (mounts[1] / name).read_bytes()
            expect(found == b"".join(lines), f"{len(found)} bytes after {len(lines)} lines of {sum(map(len, lines))}")
    return f"{len(lines)} lines"


def checkpoint(mounts):
    """A file replaced by rename on one mount: the other sees old or new, whole, and the new one within a second."""
    name, versions, end = "checkpoint", 0, time.monotonic() + SECONDS / 4
    while time.monotonic() < end:
        versions += 1
        content = b"%09d" % versions * 20_000
        (mounts[0] / "checkpoint.new").write_bytes(content)
        os.rename(mounts[0] / "checkpoint.new", mounts[0] / name)
        since = time.monotonic()
        while versions > 1 or time.monotonic() - since > STALE_SECONDS:
            began = time.monotonic()
            found = (mounts[1] / name).read_bytes()
            whole = len(found) == len(content) and found == found[:9] * 20_000
            expect(whole, f"a mixture: {found[:9]}, {len(found)} bytes")
            if found == content:
                break
            expect(began - since < STALE_SECONDS, f"version {found[:9]} is seen long after {versions} replaced it")
    shutil.copy(mounts[1] / name, mounts[0] / "copy")
    return f"{versions} versions"
