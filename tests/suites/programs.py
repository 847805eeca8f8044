"""Programs that people run all day: git, cargo, sqlite, tar, rsync, cp, python; a second mount looks at what they leave."""

import contextlib
import functools
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

from cluster import STALE_SECONDS, Onlooker
from harness import CACHE, REPOSITORY, Skipped, apt, expect, fail, listing, package, python, run, same


def cases(report, cluster, faults):
    mount, other = cluster.mount("mnt"), cluster.mount("other")
    cluster.begin(Onlooker(other.point))
    report.case("git", functools.partial(git, mount, other))
    report.case("cargo-small", functools.partial(cargo_small, mount, other))
    report.case("cargo-project", functools.partial(cargo_project, mount, other), deadline=2400)
    report.case("sqlite-wal", functools.partial(sqlite, mount, other, "wal"))
    report.case("sqlite-rollback", functools.partial(sqlite, mount, other, "delete"))
    report.case("venv", functools.partial(venv, mount, other))
    report.case("trees", functools.partial(trees, mount, other), deadline=3600)


def seen_elsewhere(mount, other, name):
    """What the other mount sees of a tree is what this one sees, after the time that names may be old."""
    time.sleep(STALE_SECONDS)
    here = listing(mount.point / name)
    same(here, listing(other.point / name), f"{name} as another mount sees it")
    return here


def git(mount, other):
    if not (REPOSITORY / ".git").exists():
        raise Skipped("these sources are not a git repository")
    program = package("git", "git")
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_CONFIG_GLOBAL": "/dev/null"}

    def at(where, *arguments):
        return run(program, "-C", where / "clone", *arguments, env=environment)

    run(program, "clone", "--no-local", "--quiet", REPOSITORY, mount.point / "clone")
    at(mount.point, "fsck", "--full", "--strict")
    at(mount.point, "checkout", "--quiet", "HEAD~5")
    at(mount.point, "checkout", "--quiet", "-b", "work")
    (mount.point / "clone" / "README.md").write_text("changed\n")
    at(mount.point, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--all", "--message", "changed")
    at(mount.point, "gc", "--quiet", "--aggressive", "--prune=now")
    seen_elsewhere(mount, other, "clone")
    mount.remount()
    for where in (mount.point, other.point):
        at(where, "fsck", "--full", "--strict")
        expect(at(where, "status", "--porcelain") == "", "files changed by themselves")
    at(mount.point, "checkout", "--quiet", "-")
    expect(at(mount.point, "rev-parse", "HEAD~0") == run(program, "-C", REPOSITORY, "rev-parse", "HEAD~5"), "another commit")
    return f"{at(mount.point, 'rev-list', '--count', '--all').strip()} commits"


def cargo(folder, *arguments, deadline=600):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CARGO_")}
    environment["CARGO_INCREMENTAL"] = "1"
    return run("cargo", *arguments, "--offline", deadline=deadline, cwd=folder, env=environment)


def cargo_small(mount, other):
    """A program with a procedural macro and a build script among its crates: built, run, built again, changed."""
    folder = mount.point / "small"
    (folder / "src").mkdir(parents=True)
    (folder / "Cargo.toml").write_text('[package]\nname = "small"\nversion = "0.1.0"\nedition = "2021"\n[workspace]\n'
                                       '[dependencies]\nserde = { version = "1", features = ["derive"] }\nserde_json = "1"\n')
    shutil.copy(REPOSITORY / "Cargo.lock", folder)
    main = ('#[derive(serde::Deserialize)] struct Answer { value: u32 }\nfn main() { let answer: Answer = '
            'serde_json::from_str("{\\"value\\":41}").unwrap(); println!("{}", answer.value + %s); }\n')
    for step, adds in enumerate((1, 2)):
        (folder / "src" / "main.rs").write_text(main % adds)
        cargo(folder, "build")
        mount.remount()
        expect(run(folder / "target" / "debug" / "small").strip() == str(41 + adds), f"step {step}: wrong answer")
        time.sleep(STALE_SECONDS)
        expect(run(other.point / "small" / "target" / "debug" / "small").strip() == str(41 + adds), "another one elsewhere")
        expect("Compiling" not in cargo(folder, "build"), "it is built again although nothing changed")
    seen_elsewhere(mount, other, "small")


def cargo_project(mount, other):
    """This project itself, or the package that SUITE_CARGO names: built inside the mount, and not again when nothing changed."""
    package_built = os.environ.get("SUITE_CARGO", "torchfs-cli")
    folder = mount.point / "project"
    shutil.copytree(REPOSITORY, folder, ignore=shutil.ignore_patterns("target", ".git"))
    cargo(folder, "build", "--package", package_built, deadline=2000)
    mount.remount()
    again = cargo(folder, "build", "--package", package_built, deadline=2000)
    expect("Compiling" not in again, f"it is built again although nothing changed: {again[:300]}")
    if package_built == "torchfs-cli":
        expect("torchfs" in run(other.point / "project" / "target" / "debug" / "torchfs", "--version"), "it does not run")
    return f"{package_built}, {len(seen_elsewhere(mount, other, 'project'))} files"


WRITER = """
import sqlite3, sys, time
path, writer, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
base = sqlite3.connect(path, timeout=120, isolation_level=None)
for row in range(rows):
    base.execute("begin immediate")
    base.execute("insert into rows values (?, ?, randomblob(?))", (writer, row, 500 + 37 * row % 9000))
    base.execute("insert into sums values (?, 1) on conflict(writer) do update set rows = rows + 1", (writer,))
    base.execute("commit")
    print(row, flush=True)
"""


def sqlite(mount, other, journal):
    """Four writers at once, one of them killed and begun again a few times: what was committed is there, once, and intact."""
    path, rows = str(mount.point / f"{journal}.db"), 150
    base = sqlite3.connect(path, timeout=120, isolation_level=None)
    mode, = base.execute(f"pragma journal_mode={journal}").fetchone()
    expect(mode == journal, f"journal mode {mode}")
    base.execute("create table rows (writer, row, content)")
    base.execute("create table sums (writer integer primary key, rows)")

    def writer(number, count):
        command = [sys.executable, "-c", WRITER, path, str(number), str(count)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    steady = [writer(number, rows) for number in (1, 2, 3)]
    committed = {number: rows for number in (1, 2, 3)}
    for number in (10, 11, 12, 13):
        killed = writer(number, 100_000)
        threading.Timer(random.uniform(1, 4), killed.kill).start()
        output, _ = killed.communicate(timeout=200)
        committed[number] = len(output.split())
    for process in steady:
        _, errors = process.communicate(timeout=600)
        expect(process.returncode == 0, f"a writer failed: {errors[-300:]}")
    check_base(base, committed)
    base.close()
    mount.remount()
    time.sleep(STALE_SECONDS)
    for where in (path, f"file:{other.point / f'{journal}.db'}?immutable=1"):
        with contextlib.closing(sqlite3.connect(where, uri=True)) as again:
            check_base(again, committed)
    return f"{sum(committed.values())} rows"


def check_base(base, committed):
    expect(base.execute("pragma integrity_check").fetchall() == [("ok",)], "integrity_check")
    found = dict(base.execute("select writer, count(distinct row) from rows group by writer"))
    expect(found == dict(base.execute("select writer, rows from sums")), "half a transaction is there")
    # The one that was killed may have committed a row that it did not live to tell of.
    wrong = {writer: (rows, found.get(writer, 0)) for writer, rows in committed.items()
             if found.get(writer, 0) - rows not in ((0, 1) if writer >= 10 else (0,))}
    expect(not wrong, f"committed and found rows differ by writer: {wrong}")


def venv(mount, other):
    folder = mount.point / "venv"
    run(sys.executable, "-m", "venv", folder)
    used = "import pip, sys, json, sqlite3; print(sys.prefix, pip.__version__)"
    mount.remount()
    expect(str(folder) in run(folder / "bin" / "python", "-c", used), "another environment")
    run(folder / "bin" / "python", "-m", "compileall", "-q", "-f", folder / "lib")
    run(folder / "bin" / "pip", "--version")
    return f"{len(seen_elsewhere(mount, other, 'venv'))} files"


def source_tree():
    """The tree to copy: SUITE_TREE, or the Linux sources of Debian."""
    if chosen := os.environ.get("SUITE_TREE"):
        return Path(chosen)
    if not (found := sorted(CACHE.glob("linux-source-*/"))):
        if not (archives := sorted(Path("/usr/src").glob("linux-source-*.tar.xz"))):
            apt("linux-source")
            archives = sorted(Path("/usr/src").glob("linux-source-*.tar.xz"))
        with tarfile.open(archives[-1] if archives else fail("linux-source has no archive")) as archive:
            archive.extractall(CACHE)
        found = sorted(CACHE.glob("linux-source-*/"))
    return found[-1]


def trees(mount, other):
    """A tree goes in by three programs at once, and comes out again by three; every copy is compared with where it came from."""
    tree, out = source_tree(), mount.cluster.folder / "out"
    rsync, expected = package("rsync", "rsync"), listing(tree)
    out.mkdir()

    def copies(source, target):
        """A name for each program, with the command by which it copies."""
        pack, unpack = f"tar -C '{source('tar')}' --format=posix -cf - .", f"tar -C '{target}/tar' -xf - --same-owner -p"
        return {
            "tar": ["sh", "-c", f"mkdir '{target}/tar' && {pack} | {unpack}"],
            "cp": ["cp", "-a", source("cp"), target / "cp"],
            "rsync": [rsync, "-aH", f"{source('rsync')}/", target / "rsync"],
        }

    at_once(copies(lambda name: tree, mount.point))
    time.sleep(STALE_SECONDS)
    for name in ("tar", "cp", "rsync"):
        same(expected, listing(other.point / name), f"{name} into the mount, seen through the other")
    mount.remount()
    at_once(copies(lambda name: mount.point / name, out))
    for name in ("tar", "cp", "rsync"):
        same(expected, listing(out / name), f"{name} out of the mount")
    unlike = run(rsync, "-aHnci", "--delete", f"{tree}/", mount.point / "cp", deadline=1200)
    expect(unlike == "", f"rsync finds differences: {unlike[:300]}")
    shutil.rmtree(out)
    return f"{len(expected)} paths"


def at_once(commands):
    """Runs commands in parallel; all must succeed."""
    errors = []

    def one(command):
        try:
            run(*command, deadline=3000)
        except Exception as error:  # raised again below, where the case sees it
            errors.append(error)

    threads = [threading.Thread(target=one, args=(command,)) for command in commands.values()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
