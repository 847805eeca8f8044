"""On a real mount of a real cluster, which runs for these tests. TORCHFS says which binary; without it they are skipped."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torchfs
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler
from torchfs import ScheduledSampler, plan

BINARY = os.environ.get("TORCHFS")
# Where a mount is required, as in CI, its absence is a failure.
MOUNTS = os.path.exists("/dev/fuse") or "TORCHFS_REQUIRE_FUSE" in os.environ
pytestmark = pytest.mark.skipif(
    not BINARY or not MOUNTS, reason="no real mount: TORCHFS names no binary, or there is no /dev/fuse"
)
NAMES = [f"class-{number % 4}/{number:03}.bin" for number in range(200)] + ["a.b", "a/c", "ü ü", "{x"]


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    """Where a cluster of nine nodes in one process is mounted; `train` on it has the files NAMES."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "mount").mkdir()
    for name in NAMES:
        path = folder / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random.Random(name).randbytes(3000))
    port = free_ports(9)
    environment = {**os.environ, "TORCHFS_META": f"127.0.0.1:{port},127.0.0.1:{port + 1},127.0.0.1:{port + 2}"}
    command = [BINARY, "up", "--data", folder / "data", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        cluster = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        torchfs_command("put", "-r", folder / "train", "/", env=environment, tries=60)
        torchfs_command("mount", "--background", "--cache-dir", folder / "cache", folder / "mount", env=environment)
        yield str(folder / "mount")
        torchfs_command("umount", folder / "mount", env=environment)
    finally:
        subprocess.run(["umount", "-l", folder / "mount"], stderr=subprocess.DEVNULL)
        cluster.send_signal(signal.SIGINT)
        try:
            cluster.wait(60)
        except subprocess.TimeoutExpired:
            cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)


def torchfs_command(*arguments, env, tries=1):
    """Runs the binary, again while the cluster is starting."""
    for attempt in range(1, tries + 1):
        done = subprocess.run([BINARY, *arguments], env=env, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return
        assert attempt < tries, done.stderr
        time.sleep(0.5)


def free_ports(count):
    """The first of some ports that follow each other and are free."""
    for first in random.sample(range(20000, 30000, count), 100):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for number, each in enumerate(sockets):
                each.bind(("127.0.0.1", first + number))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise AssertionError("no free ports")


@pytest.fixture
def mount(point):
    """A mount that takes orders."""
    if not os.path.exists(os.path.join(point, ".torchfs", "schedule")):
        pytest.skip("this TorchFS takes no orders: .torchfs/schedule is missing")
    found = torchfs.find_mount(point)
    found.forget()
    # As in a new process, which knows nothing of what was announced.
    plan._plans.clear()
    return found


def told(mount, epoch):
    return next(each for each in mount.announced()["epochs"] if each["epoch"] == epoch)


def test_a_mount_is_found_and_its_files_are_read(point):
    data = torchfs.file_dataset(os.path.join(point, "train"), lambda content, path: (path, content))
    assert torchfs.find_mount(data.paths[0]).point == point
    assert [os.path.relpath(path, data.root) for path in data.paths] == sorted(NAMES, key=os.fsencode)
    for path, content in data:
        assert content == random.Random(os.path.relpath(path, data.root)).randbytes(3000)
    assert torchfs.stats(data.root)["opens"] >= len(NAMES)


def keys(told):
    parts = list(told.values()) if isinstance(told, dict) else told if isinstance(told, list) else []
    return {*(told if isinstance(told, dict) else ()), *(key for part in parts for key in keys(part))}


def test_all_that_a_mount_tells_is_documented(mount):
    mount.announce({}, ["train/a.b"])
    Path(mount.point, "train/a.b").read_bytes()
    docs = Path(__file__).parents[2] / "docs"
    for told, page in [(mount.stats(), "stats.md"), (mount.announced(), "schedule.md")]:
        text = (docs / page).read_text()
        assert {key for key in keys(told) if f"`{key}`" not in text} <= {"unknown_first", "repeated_first"}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_announced_and_read(mount, workers):
    data = torchfs.file_dataset(os.path.join(mount.point, "train"))
    sampler = ScheduledSampler(RandomSampler(data), data, batch_size=8, num_workers=workers)
    batches = iter(DataLoader(data, batch_size=8, sampler=sampler, num_workers=workers, timeout=120 if workers else 0))
    read = list(next(batches))
    epoch = told(mount, 0)
    assert epoch["entries"] == len(NAMES) and epoch["unknown"] == 0 and epoch["repeated"] == 0
    for batch in batches:
        read += batch
    assert sorted(read) == sorted(random.Random(name).randbytes(3000) for name in NAMES)


def test_a_file_added_after_the_listing_puts_nothing_off(mount):
    grown = Path(mount.point, "grown")
    grown.mkdir()
    (grown / "b").write_text("ten bytes.")
    data = torchfs.file_dataset(grown)
    (grown / "a").write_text("three")
    list(ScheduledSampler(RandomSampler(data), data))
    assert told(mount, 0)["bytes"] == 10
    shutil.rmtree(grown)


def test_the_next_epoch_is_known_before_this_one_ends(mount):
    data = torchfs.file_dataset(os.path.join(mount.point, "train"))
    sampler = ScheduledSampler(DistributedSampler(data, num_replicas=1, rank=0), data)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for index in sampler:
            data[index]
        assert told(mount, epoch + 1)["entries"] == len(NAMES)


def test_paths_indices_and_quoted_names_mean_the_same(mount):
    listed = torchfs.listing(os.path.join(mount.point, "train"))
    mount.announce({"epoch": 0, "folder": "train"}, map(str, range(len(listed))))
    mount.announce({"epoch": 1}, (f"train/{name}" for name in listed))
    mount.announce({"epoch": 2}, (json.dumps(f"{mount.point}/train/{name}") for name in listed))
    for epoch in range(3):
        assert (told(mount, epoch)["entries"], told(mount, epoch)["unknown"]) == (len(listed), 0)


def test_an_order_written_by_a_shell_is_one(mount):
    subprocess.run("find train -type f | shuf > .torchfs/schedule", shell=True, check=True, cwd=mount.point)
    assert [each["entries"] for each in mount.announced()["epochs"]] == [len(NAMES)]


def test_ranks_share_an_order(mount):
    mount.announce({"epoch": 0, "folder": "train", "rank": 1, "world_size": 3}, map(str, range(10)))
    # The tenth cannot be divided: the first two come again, as torch has it.
    assert told(mount, 0)["entries"] == 4


def test_what_is_unknown_or_repeated_is_counted(mount):
    mount.announce({"epoch": 0}, ["train/a.b", "train/none", "train/a.b", "train"])
    epoch = told(mount, 0)
    assert (epoch["unknown"], epoch["repeated"]) == (2, 1)
    assert "train/none" in epoch["unknown_first"] and "train/a.b" in epoch["repeated_first"]


def test_samples_whose_files_are_gone_are_told(mount):
    folder = Path(mount.point, "gone")
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / name).write_text(name)
    data = torchfs.file_dataset(folder)
    (folder / "b").unlink()
    with pytest.warns(RuntimeWarning, match="1 of the samples announced lead to no file; the first is /gone/b"):
        list(ScheduledSampler(RandomSampler(data), data))
    shutil.rmtree(folder)


@pytest.mark.parametrize("header, lines", [({"folder": "train"}, ["x"]), ({"epoch": -1}, ["train/a.b"])])
def test_a_malformed_order_is_refused_with_a_reason(mount, header, lines):
    with pytest.raises(OSError) as refused:
        mount.announce(header, lines)
    assert mount.announced()["error"] and mount.announced()["error"] in str(refused.value)


def test_what_was_announced_is_forgotten(mount):
    for _ in range(20):
        mount.announce({"epoch": 4}, ["train/a.b"])
        mount.forget()
        assert mount.announced()["epochs"] == []


TRAINING = """
import os, sys, torch, torchfs
from torch.utils.data import DataLoader, RandomSampler
data = torchfs.file_dataset(sys.argv[1])
sampler = torchfs.ScheduledSampler(RandomSampler(data, generator=torch.Generator()), data)
for epoch in range(2):
    for batch in DataLoader(data, batch_size=50, sampler=sampler, num_workers=2):
        pass
assert torchfs.find_mount(data.root).announced()["epochs"][-1]["read"] == 0
"""


def run(program, *arguments):
    """What a program of its own prints, in the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_training_that_ends_leaves_no_order(mount):
    run(TRAINING, os.path.join(mount.point, "train"))
    assert mount.announced()["epochs"] == []


def test_a_training_that_ends_leaves_what_others_announced(mount):
    other = Path(mount.point, "other")
    other.write_text("of another program")
    mount.announce({"epoch": 4}, ["other"])
    run(TRAINING, os.path.join(mount.point, "train"))
    assert [each["epoch"] for each in mount.announced()["epochs"]] == [4, 5, 6, 7], "announced before"
    mount.forget()
    run(TRAINING + "torchfs.find_mount(data.root).announce({}, ['other'])", os.path.join(mount.point, "train"))
    assert told(mount, 3)["entries"] == 1, "announced meanwhile"
    other.unlink()


def test_a_forked_process_withdraws_nothing(mount):
    run(TRAINING + "if os.fork() == 0: sys.exit()\nos.wait()\n"
        "assert torchfs.find_mount(data.root).announced()['epochs']", os.path.join(mount.point, "train"))
    assert mount.announced()["epochs"] == []


def test_training_goes_on_when_files_vanish(mount):
    own = Path(mount.point, "own")
    own.mkdir()
    for number in range(20):
        (own / f"{number:02}").write_text(str(number))
    data = torchfs.file_dataset(own)
    sampler = ScheduledSampler(RandomSampler(data), data)
    order = iter(sampler)
    first = next(order)
    gone = next(index for index in range(20) if index != first)
    os.unlink(data.paths[gone])
    assert [data[index] for index in order if index != gone]
    shutil.rmtree(own)
