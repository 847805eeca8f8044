"""Runs DLIO's shapes on a mount, the local disk and tmpfs, and prints what they gave. Started by run.sh."""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tests" / "suites"))
from cluster import Cluster  # noqa: E402
from harness import Failed, end_with_all, run  # noqa: E402

# DLIO leaves the first step of an epoch out of its utilisation: of one file to each it would know nothing.
FILES_PER_ACCELERATOR_LEAST = 4
ACCELERATORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Shape:
    """What one of the paper's trainings reads: one sample per file, batches of one."""

    name: str
    files_per_gb: int
    files_quick: int
    file_bytes: int
    # What an H100 computes per file, from DLIO's own workloads.
    compute_seconds: float
    resize: int
    # The utilisation that MLPerf Storage asks for.
    utilisation_least: int


SHAPES = {
    # 700 samples of 114,660 bytes to a file; 400 of them in 0.224 s.
    "resnet50": Shape("resnet50", 13, 8, 80_000_000, 0.392, 150_528, 90),
    "cosmoflow": Shape("cosmoflow", 16_384, 512, 65_536, 0.0035, 0, 70),
}


@dataclass
class Result:
    """What one run of DLIO gave; `first` is the first epoch, with cold caches, `later` the mean of the others."""

    shape: str
    place: str
    scheduled: bool
    computes: bool
    accelerators: int
    files: int
    first: dict
    later: dict
    epochs: list

    def row(self):
        place = self.place + (" + schedule" if self.scheduled else "")
        computes = "as H100" if self.computes else "none"
        cells = [f"{epoch[name]:,.1f}" for epoch in (self.first, self.later) for name in ("samples_s", "mb_s", "au")]
        if not self.computes:
            cells[2] = cells[5] = "-"
        return [self.shape, place, computes, str(self.accelerators), *cells]


HEAD = ["shape", "where", "compute", "accelerators", "first: samples/s", "MB/s", "AU %", "later: samples/s", "MB/s", "AU %"]


def main():
    options = arguments()
    end_with_all()
    started = time.monotonic()
    # Everything is below one folder on the disk and one in memory, which are gone in the end.
    with tempfile.TemporaryDirectory(prefix="dlio-", dir=os.environ.get("DLIO_DIR")) as disk, \
            tempfile.TemporaryDirectory(prefix="dlio-", dir="/dev/shm") as memory:
        os.environ["TMPDIR"] = tempfile.tempdir = disk
        cluster = Cluster(options.binary)
        try:
            results, held = measure(cluster, Path(disk), Path(memory), options)
        except Failed as why:
            sys.exit(f"dlio: {why}")
        finally:
            cluster.end(keep_logs=False)
    print_all(results, held, time.monotonic() - started)
    if options.json:
        options.json.write_text(json.dumps({"results": [asdict(each) for each in results], "held": held}, indent=1))


def measure(cluster, disk, memory, options):
    cluster.wait_until_whole()
    mount = cluster.mount("mount", ["--cache-size", options.cache])
    if options.schedule and not (mount.point / ".torchfs/schedule").exists():
        raise Failed("this torchfs takes no orders: leave out --schedule")
    places = {"mount": mount.point, "disk": disk, "tmpfs": memory}
    results, held = [], {}
    for shape in options.shapes:
        bench = Bench(shape, make(shape, options, places, cluster), places, mount, options, results)
        bench.beside_each_other()
        if options.accelerators:
            held[shape.name] = bench.accelerators()
        for place in places.values():
            shutil.rmtree(place / shape.name)
    cluster.close()
    return results, held


def arguments():
    parser = argparse.ArgumentParser(
        prog="run.sh",
        description="Environment: DLIO_GB size of each data set in GB (1; the paper's 4), DLIO_EPOCHS (3), DLIO_WORKERS of each "
        "accelerator (2), DLIO_DIR where cluster and data are (TMPDIR), DLIO_VENV where DLIO is installed.",
    )
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=f"{', '.join(SHAPES)} (both)")
    parser.add_argument("--quick", action="store_true", help="under three minutes: little data, at most two accelerators, on the mount")
    parser.add_argument("--schedule", action="store_true", help="the mount with the order announced, too")
    parser.add_argument("--cache", default="10GiB", metavar="SIZE", help="the mount's --cache-size")
    parser.add_argument("--accelerators", type=int, default=64, metavar="N", help="raise up to N; 0 does not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything, each epoch included")
    parser.add_argument("--binary", type=Path, default=REPOSITORY / "target/release/torchfs", help="the torchfs to run")
    options = parser.parse_args()
    if unknown := set(options.shapes) - SHAPES.keys():
        parser.error(f"no such shape: {', '.join(unknown)}")
    if not options.binary.exists():
        parser.error(f"{options.binary} is missing: cargo build --release, or --binary")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        parser.error("needs root and /dev/fuse")
    options.shapes = [SHAPES[name] for name in options.shapes]
    options.gigabytes = float(os.environ.get("DLIO_GB", 1))
    options.epochs = max(2, int(os.environ.get("DLIO_EPOCHS", 2 if options.quick else 3)))
    options.workers = int(os.environ.get("DLIO_WORKERS", 2))
    options.accelerators = min(options.accelerators, 2) if options.quick else options.accelerators
    return options


def make(shape, options, places, cluster):
    """Has DLIO make the data on the disk, and copies it to the other places. Returns the number of files."""
    files = shape.files_quick if options.quick else round(shape.files_per_gb * options.gigabytes)
    files = max(files, FILES_PER_ACCELERATOR_LEAST)
    target = places["disk"] / shape.name
    dlio(shape, files, 1, target, options, ["++workload.workflow.generate_data=True", "++workload.workflow.train=False"])
    made = sum(1 for _ in target.rglob("*.npz"))
    if made != files:
        raise Failed(f"DLIO made {made} files of {shape.name} instead of {files}")
    shutil.copytree(target, places["tmpfs"] / shape.name)
    cluster.torchfs("put", "-r", target, "/", deadline=3600)
    os.sync()
    return files


class Bench:
    """The runs of one shape."""

    def __init__(self, shape, files, places, mount, options, results):
        self.shape, self.files, self.places, self.mount = shape, files, places, mount
        self.options, self.results = options, results
        # (place, whether its orders are announced)
        self.rows = [(place, False) for place in places] + ([("mount", True)] if options.schedule else [])

    def beside_each_other(self):
        for computes in (False, True):
            for place, scheduled in self.rows:
                self.train(place, scheduled, computes, 1)

    def accelerators(self):
        """How many accelerators each place keeps as busy as they should be, of those that there is data for."""
        held = {}
        most = min(self.options.accelerators, self.files // FILES_PER_ACCELERATOR_LEAST)
        counts = [count for count in ACCELERATORS if count <= most]
        for place, scheduled in self.rows:
            if self.options.quick and place != "mount":
                continue
            name = place + (" + schedule" if scheduled else "")
            held[name] = "0"
            for count in counts:
                known = [each for each in self.results if (each.shape, each.place, each.scheduled, each.computes,
                         each.accelerators) == (self.shape.name, place, scheduled, True, count)]
                result = known[0] if known else self.train(place, scheduled, True, count)
                if result.later["au"] < self.shape.utilisation_least:
                    break
                held[name] = f"{count} or more" if count == counts[-1] else f"{count}"
        return held

    def train(self, place, scheduled, computes, accelerators):
        """One run of DLIO, which begins with nothing cached."""
        if place == "mount":
            self.mount.remount()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        # DLIO deals the same number of files to each accelerator.
        files = self.files // accelerators * accelerators
        settings = [] if computes else ["++workload.train.computation_time=0"]
        if scheduled:
            settings += ["++workload.reader.data_loader_classname=scheduled_loader.ScheduledDataLoader",
                         "++workload.reader.data_loader_sampler=index"]
        found = dlio(self.shape, files, accelerators, self.places[place] / self.shape.name, self.options, settings)
        if not found:
            raise Failed(f"DLIO left no summary of {self.shape.name}")
        counted = json.loads((self.mount.point / ".torchfs/stats").read_text())["epochs"]
        if scheduled and all(epoch["epoch"] is None for epoch in counted):
            raise Failed("the mount was told no order")
        speeds = found["metric"]["train_throughput_samples_per_second"]
        busy = found["metric"]["train_au_percentage"]
        epochs = [{"samples_s": speed, "mb_s": speed * self.shape.file_bytes / 1e6, "au": au} for speed, au in zip(speeds, busy)]
        later = {name: statistics.fmean(epoch[name] for epoch in epochs[1:]) for name in epochs[0]}
        result = Result(self.shape.name, place, scheduled, computes, accelerators, files, epochs[0], later, epochs)
        self.results.append(result)
        print("  ".join(result.row()), file=sys.stderr, flush=True)
        return result


def dlio(shape, files, accelerators, folder, options, settings):
    """Runs DLIO and returns its summary, which it leaves after training."""
    with tempfile.TemporaryDirectory(prefix="run-") as output:
        dataset = {"data_folder": folder, "num_files_train": files, "record_length": shape.file_bytes,
                   "record_length_stdev": 0, "record_length_resize": shape.resize}
        train = {"epochs": options.epochs, "computation_time": shape.compute_seconds}
        command = ["mpirun", "-np", accelerators, "--oversubscribe", "--bind-to", "none",
                   f"{os.environ['DLIO_VENV']}/bin/dlio_benchmark", "workload=unet3d_h100",
                   f"++workload.model={shape.name}", "++workload.workflow.checkpoint=False",
                   *(f"++workload.dataset.{name}={value}" for name, value in dataset.items()),
                   *(f"++workload.train.{name}={value}" for name, value in train.items()),
                   "++workload.reader.batch_size=1", f"++workload.reader.read_threads={options.workers}",
                   f"++hydra.run.dir={output}", *settings]
        # It makes a folder for checkpoints wherever it is started.
        run(*command, deadline=7200, env=environment(), cwd=output)
        summary = Path(output, "summary.json")
        return json.loads(summary.read_text()) if summary.exists() else None


def environment():
    packages = os.pathsep.join([str(Path(__file__).parent), str(REPOSITORY / "torchfs-py" / "src")])
    return {**os.environ, "PYTHONPATH": packages, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_btl": "self,vader", "DFTRACER_ENABLE": "0", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def print_all(results, held, seconds):
    rows = [HEAD] + [each.row() for each in results]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) if at < 2 else cell.rjust(width) for at, (cell, width) in enumerate(zip(row, widths))))
    for shape, places in held.items():
        shown = ", ".join(f"{place} {count}" for place, count in places.items())
        print(f"{shape}: accelerators at {SHAPES[shape].utilisation_least} % or more: {shown}")
    print(f"{seconds:.0f} s; AU: accelerator utilisation; first: with cold caches, later: the mean of the other epochs")


if __name__ == "__main__":
    main()
