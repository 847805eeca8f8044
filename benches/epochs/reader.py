"""Reads epochs of a folder of a mount, in a process of its own. Prints a line of JSON for each."""

import json
import sys
import time

import torch
import torchfs
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

BATCH = 32


def main():
    """`how` is an `Arrangement` of epochs.py, as a dict, with the folder, this reader's rank, and how many epochs."""
    how = json.loads(sys.argv[1])
    data = torchfs.file_dataset(how["folder"])
    if how["mounts"] > 1:
        order = DistributedSampler(data, how["mounts"], how["rank"], seed=1)
    else:
        order = RandomSampler(data, generator=torch.Generator().manual_seed(1))
    workers = how["workers"]
    sampler = torchfs.ScheduledSampler(order, data, batch_size=BATCH if workers else 1, num_workers=workers)
    loader = DataLoader(data, BATCH, sampler=sampler, num_workers=workers, collate_fn=len, persistent_workers=workers > 0) if workers else None
    for epoch in range(how["epochs"]):
        if how["mounts"] > 1:
            order.set_epoch(epoch)
        before, began = torchfs.stats(how["folder"]), time.monotonic()
        files = sum(loader) if loader else read(data, sampler, how["compute_ms"] / 1000)
        seconds, after = time.monotonic() - began, torchfs.stats(how["folder"])
        asked = {name: after["requests"][name]["requests"] - before["requests"][name]["requests"]
                 for name in ("metadata_reads", "storage_reads")}
        counted = [each for each in after["epochs"] if each["epoch"] == epoch]
        print(json.dumps({"files": files, "seconds": seconds, **asked, "counted": counted[0] if counted else None}), flush=True)


def read(data, sampler, compute_seconds):
    files = 0
    for index in sampler:
        with open(data.paths[index], "rb", buffering=0) as file:
            content = file.read()
        assert len(content) > 0
        files += 1
        if compute_seconds:
            time.sleep(compute_seconds)
    return files


if __name__ == "__main__":
    main()
