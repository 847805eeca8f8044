"""fio: four jobs write blocks with checksums; after a remount with an empty cache every block is read and verified."""

import functools
import json

from harness import expect, package, run

PATTERNS = {
    "seq-128k": "--rw=write --bs=128k --ioengine=psync",
    "seq-1m": "--rw=write --bs=1m --ioengine=psync --size=256m",
    "rand-4k": "--rw=randwrite --bs=4k --ioengine=psync --size=32m",
    "mmap-seq": "--rw=write --bs=64k --ioengine=mmap",
    "mmap-rand": "--rw=randwrite --bs=4k --ioengine=mmap --size=32m",
    "libaio": "--rw=randwrite --bs=16k --ioengine=libaio --iodepth=16",
    "fsync": "--rw=write --bs=64k --ioengine=psync --fsync=16 --size=32m",
    "direct": "--rw=write --bs=64k --ioengine=psync --direct=1",
    "direct-aio": "--rw=randwrite --bs=64k --ioengine=libaio --iodepth=8 --direct=1",
    "small-files": "--rw=write --bs=4k --nrfiles=200 --filesize=8k --size=1600k --ioengine=psync --openfiles=50 "
                   "--file_service_type=sequential",
}
COMMON = ("--size=64m --numjobs=4 --verify=crc32c --verify_fatal=1 --verify_state_save=0 --randseed=7 --fallocate=none "
          "--group_reporting --output-format=json")


def cases(report, cluster, faults):
    mount = cluster.mount("mnt")
    for name, pattern in PATTERNS.items():
        report.case(name, functools.partial(verify, mount, name, pattern))


def verify(mount, name, pattern):
    folder = mount.point / name
    folder.mkdir()
    written = fio(folder, name, pattern, "--do_verify=0")["write"]["io_bytes"]
    mount.remount()
    read = fio(folder, name, pattern, "--verify_only")["read"]["io_bytes"]
    expect(read == written > 0, f"{written} bytes written, {read} verified")
    return f"{written >> 20} MiB verified"


def fio(folder, name, pattern, mode):
    # Of two options of the same name the later one counts.
    output = run(package("fio", "fio"), f"--directory={folder}", f"--name={name}", *COMMON.split(), *pattern.split(), mode)
    job, = json.loads(output[output.index("{"):])["jobs"]
    expect(job["error"] == 0, f"error {job['error']}")
    return job
