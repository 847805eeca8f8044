"""Real data loaders with real workers: forked, spawned and kept; what they read is what was announced."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
import torch
import torchfs
from torch.utils.data import DataLoader, RandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler
from torchfs import ScheduledSampler

SAMPLERS = {
    "random": lambda data: RandomSampler(data, generator=torch.Generator().manual_seed(3)),
    "weighted": lambda data: WeightedRandomSampler([1.0] * 30 + [9.0] * 30, 60),
    "distributed": lambda data: DistributedSampler(data, num_replicas=2, rank=0),
}
WORKERS = [(0, None, False), (2, "fork", False), (4, "fork", True)]
CASES = [(name, *workers) for name in SAMPLERS for workers in WORKERS]
# Spawning takes seconds.
CASES += [("random", 2, "spawn", False), ("distributed", 2, "spawn", True)]


def path_and_process(content, path):
    return content.decode(), os.getpid()


def epochs(data, sampler, workers, method, persistent):
    """What two epochs read, and in which processes."""
    torch.manual_seed(1)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers, multiprocessing_context=method,
                        persistent_workers=persistent, timeout=120 if workers else 0)
    read, processes = [], set()
    for epoch in range(2):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        read.append([])
        for paths, process in loader:
            read[-1] += paths
            processes.update(process.tolist())
    return read, processes


@pytest.mark.parametrize("name, workers, method, persistent", CASES)
def test_loaders_read_what_is_announced(name, workers, method, persistent, mount, train):
    data = torchfs.file_dataset(train, path_and_process)
    plain, _ = epochs(data, SAMPLERS[name](data), workers, method, persistent)
    wrapped = ScheduledSampler(SAMPLERS[name](data), data, mount=mount, num_workers=workers, batch_size=4)
    read, processes = epochs(data, wrapped, workers, method, persistent)
    assert read == plain and read[0] != read[1]
    assert (os.getpid() in processes) == (workers == 0) and len(processes) >= max(workers, 1)
    listed = torchfs.listing(train)
    for epoch in range(2):
        assert [listed[index] for index in mount.final()[epoch]] == read[epoch]
    assert mount.orders[0][0] == {"epoch": 0, "workers": max(workers, 1), "batch_size": 4}


def test_the_examples_counters_never_go_backwards(mount, train):
    """Whatever number of epochs went before; the mount tells the latest only."""
    spec = importlib.util.spec_from_file_location("example", Path(__file__).parents[2] / "examples/train_imagefolder.py")
    example = importlib.util.module_from_spec(spec)
    pytest.importorskip("torchvision")
    spec.loader.exec_module(example)

    def counters_after(epochs):
        one = {"hits": 5, "late": 0, "misses": 5, "stall_us": 7}
        told = {"cache": {"misses": 5 * epochs}, "epochs": [{"epoch": epoch, **one} for epoch in range(epochs)][-32:]}
        Path(mount.point, ".torchfs/stats").write_text(json.dumps(told))
        return example.counters(train)

    assert example.since(counters_after(33), counters_after(34), "misses") == 5
    Path(mount.point, ".torchfs/stats").write_text('{"cache": null}')
    assert example.since({}, example.counters(train), "misses") == "-"


def test_a_training_may_stop_in_the_middle_of_an_epoch(mount, train):
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler(RandomSampler(data), data, mount=mount)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=2)
    for _ in range(3):
        next(iter(loader))
    assert sorted(mount.final()) == [0, 1, 2]
    assert all(sorted(order) == list(range(60)) for order in mount.final().values())
