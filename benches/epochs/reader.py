"""Reads epochs of a folder of a mount, in a process of its own. Prints a line of JSON for each."""

import json
import os
import sys
import time

import torch
import torchfs
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler

BATCH = 32


class Files(Dataset):
    """Reads each file whole. What `gives_back` its pages to the kernel takes part of its time for that."""

    def __init__(self, paths, gives_back):
        self.paths = paths
        self.gives_back = gives_back

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with open(self.paths[index], "rb", buffering=0) as file:
            content = file.read()
            if self.gives_back:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return content


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
    files = Files(data.paths, how["gives_back"])
    loader = DataLoader(files, BATCH, sampler=sampler, num_workers=workers, collate_fn=len, persistent_workers=True) if workers else None
    for epoch in range(how["epochs"]):
        if how["mounts"] > 1:
            order.set_epoch(epoch)
        before, began = torchfs.stats(how["folder"]), time.monotonic()
        read = sum(loader) if loader else read_all(files, sampler, how["compute_ms"] / 1000)
        seconds, after = time.monotonic() - began, torchfs.stats(how["folder"])
        asked = {name: after["requests"][name]["requests"] - before["requests"][name]["requests"]
                 for name in ("metadata_reads", "storage_reads")}
        counted = [each for each in after["epochs"] if each["epoch"] == epoch]
        print(json.dumps({"files": read, "seconds": seconds, **asked, "counted": counted[0] if counted else None}), flush=True)


def read_all(files, order, compute_seconds):
    read = 0
    for index in order:
        read += len(files[index]) > 0
        if compute_seconds:
            time.sleep(compute_seconds)
    return read


if __name__ == "__main__":
    main()
