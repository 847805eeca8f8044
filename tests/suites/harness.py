"""What every suite uses: cases that are counted, commands with a deadline, installed programs, trees compared."""

import functools
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path.home() / ".cache" / "torchfs-suites"


class Failed(Exception):
    """What a case found, in one line."""


class Skipped(Exception):
    """Why a case cannot be run on this machine."""


def end_with_all():
    """Told to end, by SIGTERM or Ctrl-C, this program ends what it started, too."""
    for ends in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ends, lambda number, _: sys.exit(128 + number))


def expect(condition, what):
    if not condition:
        raise Failed(what)


class Report:
    """The cases of one suite: each is run, timed and counted, and has a deadline."""

    def __init__(self, name, cluster, only):
        self.name, self.cluster, self.only = name, cluster, only
        self.passed = self.failed = self.skipped = 0

    def case(self, name, work, deadline=900):
        """Runs `work()`; what it returns is shown. Past the deadline the mounts are killed, so nothing waits for them."""
        if not any(part in name for part in self.only or [""]):
            return
        start, late = time.monotonic(), threading.Timer(deadline, self.cluster.abort, [f"{name} hangs"])
        late.start()
        try:
            self.tell("ok", name, start, work() or "")
        except Skipped as why:
            self.tell("skip", name, start, why)
        except Exception as error:  # a case that breaks is one that failed; the others are still worth running
            self.tell("FAIL", name, start, error if isinstance(error, Failed) else repr(error))
        finally:
            late.cancel()

    def skip(self, name, why):
        self.tell("skip", name, time.monotonic(), why)

    def end(self, work):
        """The case that is always run: what went on in the background, and the end of the cluster."""
        self.only = None
        self.case("cluster", work)

    def tell(self, outcome, name, start, note):
        self.passed += outcome == "ok"
        self.failed += outcome == "FAIL"
        self.skipped += outcome == "skip"
        print(f"{outcome:5} {name:32} {time.monotonic() - start:6.1f} s  {note}", flush=True)

    def summary(self):
        return f"{self.name}: {self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run(*command, deadline=600, codes=(0,), user=None, **options):
    """The output of a command. Fails when it ends with another code or not in time, with the last of what it said."""
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    command = [str(part) for part in command]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, errors="replace", start_new_session=True, **identity, **options)
    shown = " ".join(command)[:100]
    try:
        output, _ = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        raise Failed(f"{shown}: not done after {deadline} s") from None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    expect(process.returncode in codes, f"{shown}: code {process.returncode}: {output.strip()[-400:]}")
    return output


def wait_until(what, condition, deadline=60):
    end = time.monotonic() + deadline
    while not condition():
        expect(time.monotonic() < end, f"waited {deadline} s in vain until {what}")
        time.sleep(0.1)


@functools.cache
def package(program, *packages):
    """Where a program is; Debian's packages are installed if it is missing."""
    if not shutil.which(program):
        apt(*packages)
    return shutil.which(program) or fail(f"{program} is missing, and {packages} did not bring it")


def apt(*packages):
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=environment)
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages, env=environment)


def fail(why):
    raise Failed(why)


def crate(name, version):
    """The program of a crate from crates.io, built once."""
    root = CACHE / "cargo"
    if not (root / "bin" / name).exists():
        run("cargo", "install", "--locked", "--root", root, f"{name}@{version}", deadline=1800,
            env={**os.environ, "CARGO_TARGET_DIR": str(CACHE / "target")})
    return root / "bin" / name


def listing(root):
    """What a tree is: for each path its kind, mode, owner, time, content, where it points, and what it is a link of."""
    found, first = {}, {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in ["", *sorted(files), *(f for f in folders if os.path.islink(os.path.join(folder, f)))]:
            path = os.path.join(folder, name) if name else folder
            about, key = os.lstat(path), os.path.relpath(path, root)
            content = about.st_size
            if stat.S_ISREG(about.st_mode):
                with open(path, "rb") as file:
                    content = (about.st_size, hashlib.blake2b(file.read(), digest_size=16).hexdigest())
            elif stat.S_ISLNK(about.st_mode):
                content = os.readlink(path)
            elif stat.S_ISDIR(about.st_mode):
                content = "folder"
            linked = first.setdefault((about.st_dev, about.st_ino), key) if about.st_nlink > 1 and not stat.S_ISDIR(
                about.st_mode) else ""
            found[key] = (about.st_mode, about.st_uid, about.st_gid, about.st_mtime_ns, content, linked)
    return found


def same(expected, found, what):
    """Fails with the first differences of two listings."""
    differ = [path for path in sorted(expected.keys() | found.keys()) if expected.get(path) != found.get(path)]
    shown = "; ".join(f"{path}: {expected.get(path)} became {found.get(path)}" for path in differ[:3])
    expect(not differ, f"{what}: {len(differ)} of {len(expected)} paths differ: {shown}")


def python(code, *arguments, **options):
    """Runs a piece of Python in a process of its own."""
    return run(sys.executable, "-c", code, *arguments, **options)
