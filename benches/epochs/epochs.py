"""Epochs on mounts with the order announced, beside `torchfs get -r`. Started by run.sh."""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "suites"))
from cluster import Cluster  # noqa: E402
from harness import Failed, end_with_all, expect  # noqa: E402

FILES_PER_FOLDER = 1000
DEADLINE_SECONDS = 1800


@dataclass(frozen=True)
class Arrangement:
    """Who reads: one process per mount, with so many workers, that takes so long for each file."""

    name: str
    mounts: int = 1
    workers: int = 0
    compute_ms: float = 0
    # Each file's pages, right after it was read: no epoch finds any in memory, as if there were more files than that holds.
    gives_back: bool = False


ARRANGEMENTS = [
    Arrangement("one reader"),
    Arrangement("one reader, gives pages back", gives_back=True),
    Arrangement("one that takes 2 ms a file", compute_ms=2, gives_back=True),
    Arrangement("two workers", workers=2),
    Arrangement("two workers, give pages back", workers=2, gives_back=True),
    Arrangement("four workers", workers=4),
    Arrangement("four workers, give pages back", workers=4, gives_back=True),
    Arrangement("two mounts", mounts=2),
    Arrangement("two mounts, give pages back", mounts=2, gives_back=True),
]
HEAD = ["who reads", "files/s", "of get -r", "hits", "late", "missed", "from storage", "of the least", "waited", "metadata", "requests/file"]


def main():
    options = arguments()
    end_with_all()
    # Everything is below one folder on the disk and one in memory, which are gone in the end.
    with tempfile.TemporaryDirectory(prefix="epochs-") as disk, tempfile.TemporaryDirectory(prefix="epochs-", dir="/dev/shm") as memory:
        os.environ["TMPDIR"] = tempfile.tempdir = disk
        cluster = Cluster(options.binary)
        try:
            result = measure(cluster, Path(disk), Path(memory), options)
        except Failed as why:
            sys.exit(f"epochs: {why}")
        finally:
            cluster.end(keep_logs=False)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


def arguments():
    parser = argparse.ArgumentParser(prog="run.sh", description="Ten minutes with the defaults on two cores.")
    parser.add_argument("--files", type=int, default=10_000, metavar="N")
    parser.add_argument("--bytes", type=int, default=65_536, metavar="N", help="of each file")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="the first fills the cache and is shown apart")
    parser.add_argument("--cache", type=int, default=25, metavar="PERCENT", help="of all files, for each mount")
    parser.add_argument("--only", metavar="PART", default="", help="readers with this in their name")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, each epoch included")
    parser.add_argument("--binary", type=Path, default=REPOSITORY / "target/release/torchfs", help="the torchfs to run")
    options = parser.parse_args()
    if not options.binary.exists():
        parser.error(f"{options.binary} is missing: cargo build --release, or --binary")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        parser.error("needs root and /dev/fuse")
    if options.epochs < 2:
        parser.error("one epoch tells nothing: --epochs 2 or more")
    options.binary = options.binary.resolve()
    return options


def measure(cluster, disk, memory, options):
    cluster.wait_until_whole()
    make(memory / "data", options)
    cluster.torchfs("put", "-r", memory / "data", "/", deadline=DEADLINE_SECONDS)
    shutil.rmtree(memory / "data")
    cache = options.files * options.bytes * options.cache // 100
    mounts = [cluster.mount(f"mount-{number}", ["--cache-size", str(cache)]) for number in range(2)]
    gets, rows = [], []
    for arrangement in ARRANGEMENTS:
        if options.only not in arrangement.name:
            continue
        gets.append(get(cluster, memory, options))
        for mount in mounts:
            mount.stop()
            # Not removed before the end: ext4 without a journal takes long to make files soon after others were removed.
            mount.cache.rename(tempfile.mkdtemp(dir=disk))
            mount.start()
        epochs = train(mounts, arrangement, options)
        rows.append({"who": asdict(arrangement), "epochs": epochs})
        print(f"{arrangement.name}: {', '.join(f'{speed(epoch):,.0f}' for epoch in epochs)} files/s", file=sys.stderr, flush=True)
    cluster.close()
    return {"files": options.files, "bytes": options.bytes, "cache_percent": options.cache, "get_files_s": gets, "rows": rows}


def make(folder, options):
    noise = random.Random(1)
    made = time.time() - 86_400
    for number in range(options.files):
        path = folder / f"class-{number // FILES_PER_FOLDER:03}" / f"{number:07}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise.randbytes(options.bytes))
        # As training data is: nobody is still writing it.
        os.utime(path, (made, made))


def get(cluster, memory, options):
    """Files per second of `torchfs get -r` into memory."""
    began = time.monotonic()
    cluster.torchfs("get", "-r", "/data", memory / "data", deadline=DEADLINE_SECONDS)
    seconds = time.monotonic() - began
    shutil.rmtree(memory / "data")
    return options.files / seconds


def train(mounts, arrangement, options):
    """What each epoch gave: a list of what each mount's reader says."""
    # A machine for each rank, as a mount each.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "torchfs-py" / "src"), "LOCAL_WORLD_SIZE": "1"}
    readers = []
    for rank, mount in enumerate(mounts[:arrangement.mounts]):
        how = {**asdict(arrangement), "folder": str(mount.point / "data"), "rank": rank, "epochs": options.epochs}
        command = [sys.executable, HERE / "reader.py", json.dumps(how)]
        readers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        said = [reader.communicate(timeout=DEADLINE_SECONDS)[0] for reader in readers]
    except subprocess.TimeoutExpired:
        raise Failed(f"{arrangement.name}: not done after {DEADLINE_SECONDS} s") from None
    finally:
        for reader in readers:
            reader.kill()
    expect(all(reader.wait() == 0 for reader in readers), f"{arrangement.name}: a reader failed")
    lines = [[json.loads(line) for line in text.splitlines()] for text in said]
    expect(all(each["counted"] for line in lines for each in line), f"{arrangement.name}: an epoch was not announced")
    return [list(epoch) for epoch in zip(*lines)]


def speed(epoch):
    return sum(each["files"] / each["seconds"] for each in epoch)


def show(result):
    """The first epoch of each, and the sums of the others."""
    least = result["files"] * result["bytes"] * (100 - result["cache_percent"]) / 100
    get_speed = statistics.median(result["get_files_s"])
    print(f"{result['files']:,} files of {result['bytes']:,} bytes, cache {result['cache_percent']} %; get -r: {get_speed:,.0f} files/s")
    rows = [HEAD]
    for row in result["rows"]:
        rows.append(cells(f"{row['who']['name']}, first", [row["epochs"][0]], get_speed, None))
        # Of several mounts each reads a part, and which is in its cache is chance.
        rows.append(cells("  later", row["epochs"][1:], get_speed, least if row["who"]["mounts"] == 1 else None))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) if at == 0 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths))))


def cells(name, epochs, get_speed, least):
    all_of = [each for epoch in epochs for each in epoch]
    total = lambda field: sum(each["counted"][field] for each in all_of)  # noqa: E731
    files, opens = sum(each["files"] for each in all_of), total("opens")
    part = lambda field: f"{100 * total(field) / opens:.2f} %"  # noqa: E731
    storage = total("storage_bytes") / len(epochs)
    waited = total("stall_us") / 1e4 / sum(each["seconds"] for each in all_of)
    files_s = statistics.fmean(map(speed, epochs))
    return [name, f"{files_s:,.0f}", f"{files_s / get_speed:.2f}", part("hits"), part("late"), part("misses"),
            f"{storage / 1e6:,.0f} MB", f"{100 * (storage / least - 1):+.2f} %" if least else "", f"{waited:.2f} %",
            f"{sum(each['metadata_reads'] for each in all_of):,}", f"{sum(each['storage_reads'] for each in all_of) / files:.3f}"]


if __name__ == "__main__":
    main()
