"""Orders: the same with and without the wrapper, and announced as they are read, ahead where they can be known."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy
import pytest
import torch
import torchfs
from conftest import RecordedMount, make_files
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler
from torchfs import ScheduledSampler

EPOCHS = 3


def seeded():
    return torch.Generator().manual_seed(11)


SAMPLERS = {
    "sequential": lambda data: SequentialSampler(data),
    "random": lambda data: RandomSampler(data),
    "random, own generator": lambda data: RandomSampler(data, generator=seeded()),
    "random, with replacement": lambda data: RandomSampler(data, replacement=True, num_samples=150, generator=seeded()),
    "subset": lambda data: SubsetRandomSampler(range(5, 40)),
    "subset, own generator": lambda data: SubsetRandomSampler(range(5, 40), generator=seeded()),
    "weighted": lambda data: WeightedRandomSampler([1.0, 5.0] * 30, 80),
    "weighted, own generator": lambda data: WeightedRandomSampler([1.0, 5.0] * 30, 80, generator=seeded()),
    "distributed": lambda data: DistributedSampler(data, num_replicas=2, rank=1, seed=4),
    "batches": lambda data: BatchSampler(RandomSampler(data, generator=seeded()), 8, drop_last=True),
}
KNOWN_AHEAD = {name for name in SAMPLERS if "generator" in name or "replacement" in name} | {
    "sequential",
    "distributed",
    "batches",
}


def epochs_of(sampler, epochs=EPOCHS):
    """What a training sees, which draws random numbers itself, too."""
    torch.manual_seed(5)
    seen = []
    for epoch in range(epochs):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        seen.append([])
        for sample in sampler:
            torch.rand(1)
            seen[-1].append(sample)
    return seen


def flat(order):
    return [each for sample in order for each in (sample if isinstance(sample, list) else [sample])]


def text_of(mount):
    """What was written last, by anybody."""
    return Path(mount.point, ".torchfs/schedule").read_text().splitlines()


def as_indices(orders):
    return {epoch: flat(order) for epoch, order in enumerate(orders)}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_is_the_same_as_without_and_is_announced(name, mount, train):
    data = torchfs.file_dataset(train)
    plain = epochs_of(SAMPLERS[name](data))
    wrapped = ScheduledSampler(SAMPLERS[name](data), data, mount=mount)
    assert len(wrapped) == len(SAMPLERS[name](data))
    assert epochs_of(wrapped) == plain
    told, read = mount.final(), as_indices(plain)
    assert all(told[epoch] == read[epoch] for epoch in range(EPOCHS))
    ahead = name in KNOWN_AHEAD
    # What was known ahead is announced once, and one epoch more than was read.
    assert [header["epoch"] for header, _ in mount.orders] == list(range(EPOCHS + ahead))


def test_the_next_order_is_announced_during_the_epoch(mount, train):
    data = torchfs.file_dataset(train)
    orders = iter(ScheduledSampler(RandomSampler(data, generator=seeded()), data, mount=mount))
    next(orders)
    assert [header["epoch"] for header, _ in mount.orders] == [0]
    list(orders)
    assert [header["epoch"] for header, _ in mount.orders] == [0, 1]


def test_a_generator_that_others_use_too_is_not_disturbed_nor_guessed_for_ever(mount, train):
    data = torchfs.file_dataset(train)

    def epochs(wrap):
        generator = seeded()
        sampler = wrap(RandomSampler(data, generator=generator))
        # The loader draws its workers' seed from the same generator in each epoch.
        return [[batch for batch in DataLoader(range(60), sampler=sampler, generator=generator)] for _ in range(5)]

    plain = epochs(lambda sampler: sampler)
    assert epochs(lambda sampler: ScheduledSampler(sampler, data, mount=mount)) == plain
    assert [mount.final()[epoch] for epoch in range(5)] == [[int(one) for one in order] for order in plain]
    # Two guesses were wrong: five orders that were read, and those.
    assert len(mount.orders) == 5 + 2


def test_set_epoch_may_be_forgotten_or_go_in_steps(mount, train):
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler(DistributedSampler(data, num_replicas=2, rank=0), data, mount=mount)
    same = [list(sampler) for _ in range(3)]
    assert same[0] == same[1] == same[2]
    # The first guess was wrong, and replaced; later ones were right.
    assert [header["epoch"] for header, _ in mount.orders] == [0, 1, 1, 2, 3]
    assert mount.final()[1] == mount.final()[2] == same[0]


def test_both_ranks_announce_what_they_read_themselves(tmp_path):
    read, told = [], []
    for rank in range(2):
        (tmp_path / f"mount-{rank}").mkdir()
        mount = RecordedMount(tmp_path / f"mount-{rank}")
        data = torchfs.file_dataset(make_files(Path(mount.point, "train"), 31))
        sampler = ScheduledSampler(DistributedSampler(data, num_replicas=2, rank=rank), data)
        sampler._plan.mount = sampler.mount = mount  # found by itself, but it shall be recorded
        read.append(epochs_of(sampler, 2))
        told.append(mount.final())
    for epoch in range(2):
        assert [told[rank][epoch] for rank in range(2)] == [as_indices(read[rank])[epoch] for rank in range(2)]
        assert set(read[0][epoch]) | set(read[1][epoch]) == set(range(31))


def test_under_torchrun_the_first_rank_of_a_machine_announces_for_all(mount, train, monkeypatch):
    data = torchfs.file_dataset(train)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    samplers = []
    for local in range(2):
        monkeypatch.setenv("LOCAL_RANK", str(local))
        # Machine 1 of two with two ranks each.
        plain = DistributedSampler(data, num_replicas=4, rank=2 + local)
        samplers.append(list(ScheduledSampler(plain, data, mount=mount, batch_size=4, num_workers=3)))
    (header, told), (ahead, _) = mount.orders
    first, second = samplers
    assert told[:12] == first[:4] + second[:4] + first[4:8] and sorted(told) == sorted(first + second)
    assert header == {"epoch": 0, "workers": 6, "batch_size": 4} and ahead["epoch"] == 1


def test_processes_without_torchrun_gather_their_orders(mount, train):
    data = torchfs.file_dataset(train)
    other = ScheduledSampler([0, 1, 2, 3], data, mount=mount, gather=lambda own: None)
    first = ScheduledSampler([0, 1, 2, 3], data, mount=mount, gather=lambda own: [own, own[::-1]])
    assert list(other) == list(first) == [0, 1, 2, 3]
    assert mount.orders == [({"epoch": 0}, [0, 3, 1, 2, 2, 1, 3, 0])]


@pytest.mark.parametrize("local, sampler, warned", [
    (None, lambda data: DistributedSampler(data, num_replicas=2, rank=0), True),
    (None, lambda data: BatchSampler(DistributedSampler(data, num_replicas=2, rank=0), 4, False), True),
    (None, lambda data: DistributedSampler(data, num_replicas=1, rank=0), False),
    ("2", lambda data: RandomSampler(data), True),
    ("1", lambda data: RandomSampler(data), False),
    ("2", lambda data: DistributedSampler(data, num_replicas=2, rank=0), False),
])
def test_ranks_that_would_replace_each_others_orders_are_told_what_to_do(mount, train, monkeypatch, local, sampler, warned):
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    data = torchfs.file_dataset(train)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ScheduledSampler(sampler(data), data, mount=mount)
        ScheduledSampler(sampler(data), data, mount=mount, gather=lambda own: [own])
    assert [each.filename for each in told] == [__file__] * warned
    assert not warned or "gather=" in str(told[0].message)


def gathered_by_torch(rank, rendezvous, train):
    """What a rank without torchrun does, as README has it."""
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)

    def gather(own):
        orders = [None] * 2 if rank == 0 else None
        torch.distributed.gather_object(own, orders)
        return orders

    del os.environ["LOCAL_WORLD_SIZE"]
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler(DistributedSampler(data, shuffle=False), data, batch_size=4, gather=gather)
    assert len(list(sampler)) == 30


def test_ranks_without_torchrun_gather_with_torch(mount, train, tmp_path):
    torch.multiprocessing.spawn(gathered_by_torch, (tmp_path / "rendezvous", train), nprocs=2)
    header, *entries = text_of(mount)
    assert header == '{"epoch": 0, "batch_size": 4}'
    assert entries[:8] == [f"train/class-0/{3 * index:04}.bin" for index in (0, 2, 4, 6, 1, 3, 5, 7)] and len(entries) == 60


def test_batch_samplers_tell_their_size(mount, train):
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler(BatchSampler(SequentialSampler(data), 8, drop_last=True), data, mount=mount, num_workers=4)
    assert list(sampler) == list(BatchSampler(SequentialSampler(data), 8, drop_last=True))
    assert mount.orders[0] == ({"epoch": 0, "workers": 4, "batch_size": 8}, list(range(56)))


def test_training_and_validation_share_a_mount(mount, train):
    folders = [train, make_files(Path(mount.point, "valid"), 20)]
    samplers = []
    for folder in folders:
        data = torchfs.file_dataset(folder)
        samplers.append(ScheduledSampler(RandomSampler(data, generator=seeded()), data, mount=mount))
    read = [list(sampler) for _ in range(4) for sampler in samplers]
    told = mount.final()
    assert [told[number] for number in range(8)] == read
    assert [len(told[number]) for number in range(10)] == [60, 20] * 5
    # Only the first validation came unforeseen: it took the place of the next training order.
    assert [header["epoch"] for header, _ in mount.orders] == [0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_sampler_that_comes_to_an_end_is_not_waited_for(mount, train):
    data = torchfs.file_dataset(train)
    once, often = [ScheduledSampler(RandomSampler(data, generator=seeded()), data, mount=mount) for _ in range(2)]
    list(once)
    read = [list(often) for _ in range(4)]
    told = mount.final()
    # `once` is expected as epoch 2 in vain: it is passed over, and what is read from then on follows.
    assert told[1] == read[0] and told[3] == read[1] and told[4] == read[2] and told[5] == read[3]


def test_numbers_go_on_where_the_mount_was(mount, train):
    data = torchfs.file_dataset(train)
    mount.announced = lambda: {"epochs": [{"epoch": epoch, "entries": 60, "read": 9} for epoch in (6, 7)]}
    list(ScheduledSampler(SequentialSampler(data), data, mount=mount))
    # A sampler that is gone is not expected any more; the next takes its number.
    list(ScheduledSampler(SequentialSampler(data), data, mount=mount))
    list(ScheduledSampler(SequentialSampler(data), data, mount=mount, epoch=3))
    assert [header["epoch"] for header, _ in mount.orders] == [8, 9, 9, 10, 3, 4]


def test_a_training_that_is_resumed_begins_with_its_own_number(mount, train):
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler(DistributedSampler(data, num_replicas=1, rank=0), data, mount=mount)
    sampler.set_epoch(20)
    list(sampler)
    assert [header["epoch"] for header, _ in mount.orders] == [20, 21]


def test_samples_may_be_anything_that_stands_for_a_number(mount, train):
    data = torchfs.file_dataset(train)
    tensors = torch.tensor([3, 1, 2])
    sampler = ScheduledSampler(SubsetRandomSampler(tensors), data, mount=mount)
    drawn = list(sampler)
    assert all(isinstance(sample, torch.Tensor) for sample in drawn)
    assert mount.orders[0][1] == [int(sample) for sample in drawn]


def test_subsets_and_lists_of_paths(mount, train):
    whole = torchfs.file_dataset(train)
    subset = Subset(whole, range(50, 60))
    list(ScheduledSampler(SequentialSampler(subset), subset, mount=mount))
    assert mount.orders[0][1] == list(range(50, 60))
    list(ScheduledSampler([2, 0, 2], paths=whole.paths, mount=mount, epoch=9))
    assert mount.texts[-1].splitlines() == [
        '{"epoch": 9}', "train/class-0/0006.bin", "train/class-0/0000.bin", "train/class-0/0006.bin"
    ]


class Loaded(Sampler):
    """A sampler of someone's own."""

    def __init__(self, *orders):
        self.orders = list(orders)

    def __iter__(self):
        return iter(self.orders.pop(0))

    def __len__(self):
        return 2


def test_samplers_of_ones_own_are_announced_when_they_begin(mount, train):
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler(Loaded([3, 1], [], [2]), data, mount=mount)
    assert [list(sampler) for _ in range(3)] == [[3, 1], [], [2]]
    assert [(header["epoch"], entries) for header, entries in mount.orders] == [(0, [3, 1]), (1, [2])]


def test_elsewhere_it_is_a_plain_sampler_and_says_so_once(tmp_path):
    data = torchfs.file_dataset(make_files(tmp_path / "train", 6))
    with pytest.warns(RuntimeWarning, match="not on a TorchFS mount") as told:
        sampler = ScheduledSampler(RandomSampler(data, generator=seeded()), data)
        assert epochs_of(sampler) == epochs_of(RandomSampler(data, generator=seeded()))
    assert len(told) == 1
    assert not (tmp_path / ".torchfs").exists()


@pytest.mark.parametrize("arguments, error, says", [
    ({"num_workers": "2"}, TypeError, "num_workers is a whole number, not '2'"),
    ({"batch_size": 3.5}, TypeError, "batch_size is a whole number, not 3.5"),
    ({"batch_size": 0}, ValueError, "batch_size is at least 1, not 0"),
    ({"epoch": -1}, ValueError, "epoch is at least 0, not -1"),
    ({"paths": "/a/file"}, TypeError, "the path of each sample, not one: '/a/file'"),
    ({"dataset": None}, TypeError, "the dataset is missing"),
    ({"sampler": DataLoader(range(9))}, TypeError, "a DataLoader is no sampler"),
])
def test_arguments_that_cannot_be_meant_are_refused(mount, train, arguments, error, says):
    with pytest.raises(error, match=says):
        ScheduledSampler(**{"sampler": [0], "dataset": torchfs.file_dataset(train), **arguments})


def test_paths_may_be_any_iterable(mount, train):
    paths = torchfs.file_dataset(train).paths
    for each in (iter(paths), numpy.array(paths), map(Path, paths)):
        list(ScheduledSampler([7, 3], paths=each))
        assert text_of(mount)[1:] == ["train/class-0/0021.bin", "train/class-0/0009.bin"]


def test_what_is_no_mount_is_told_of(mount, train, tmp_path):
    data = torchfs.file_dataset(train)
    for nowhere in (tmp_path / "nowhere", tmp_path, torchfs.Mount(tmp_path)):
        with pytest.warns(RuntimeWarning, match=f"torchfs: {os.fspath(nowhere)} is no TorchFS mount") as told:
            assert list(ScheduledSampler([1, 0], data, mount=nowhere)) == [1, 0]
        assert [each.filename for each in told] == [__file__]
    list(ScheduledSampler([1, 0], data, mount=train))
    assert text_of(mount)[1:] == ["train/class-0/0003.bin", "train/class-0/0000.bin"], "any path on the mount tells which"


def test_an_empty_dataset_is_told_of(mount, train):
    for nothing in ({"paths": []}, {"dataset": torchfs.file_dataset(train, suffixes=".none")}):
        with pytest.warns(RuntimeWarning, match="the dataset is empty"):
            ScheduledSampler([], **nothing)


def test_a_dataset_that_is_not_the_samplers_is_told_of_and_nothing_announced(mount, train):
    whole = torchfs.file_dataset(train)
    part = Subset(whole, range(9, 12))
    for sampler, data, says in [
        (RandomSampler(whole), part, "chooses among 60 samples, and the dataset has 3"),
        (BatchSampler(SequentialSampler(part), 2, False), whole, "chooses among 3 samples, and the dataset has 60"),
        (DistributedSampler(part, num_replicas=1, rank=0), whole, "chooses among 3 samples, and the dataset has 60"),
        ([2, 3], part, "the sampler yields 3, and the dataset has 3 samples"),
    ]:
        with pytest.warns(RuntimeWarning, match=says) as told:
            list(ScheduledSampler(sampler, data, mount=mount))
        assert [each.filename for each in told] == [__file__]
    assert not mount.texts


def test_a_warning_during_an_epoch_points_at_the_loop(mount, train):
    data = torchfs.file_dataset(train)
    sampler = ScheduledSampler([60], data, mount=mount)
    with pytest.warns(RuntimeWarning, match="yields 60") as told:
        with pytest.raises(IndexError):
            next(iter(DataLoader(data, sampler=sampler)))
    assert [each.filename for each in told] == [__file__]


def test_a_sampler_without_an_end_is_left_alone(mount, train):
    class Endless(Sampler):
        def __init__(self):
            pass

        def __iter__(self):
            while True:
                yield 0

    with pytest.warns(RuntimeWarning, match="no length"):
        sampler = ScheduledSampler(Endless(), torchfs.file_dataset(train), mount=mount)
    assert next(iter(sampler)) == 0 and not mount.texts


def test_a_mount_that_takes_no_orders_is_told_of_and_training_goes_on(mount, train):
    os.unlink(os.path.join(mount.point, ".torchfs", "schedule"))
    data = torchfs.file_dataset(train)
    with pytest.warns(RuntimeWarning, match="No such file.*schedule") as told:
        assert list(ScheduledSampler(SequentialSampler(data), data)) == list(range(60))
    assert len(told) == 1


def test_why_a_mount_refuses_an_order_is_told(mount, train, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mount, "_write", refuse)
    monkeypatch.setattr(mount, "announced", lambda: {"epochs": [], "error": "line 3: 99 is past the end of train"})
    data = torchfs.file_dataset(train)
    with pytest.warns(RuntimeWarning, match="line 3: 99 is past the end of train"):
        assert list(ScheduledSampler(RandomSampler(data), data, mount=mount)) != list(range(60))


def test_samples_that_are_no_numbers_end_no_training(mount, train):
    data = torchfs.file_dataset(train)
    with pytest.warns(RuntimeWarning, match="training goes on"):
        assert list(ScheduledSampler(Loaded(["a", "b"]), data, mount=mount)) == ["a", "b"]


def test_attributes_of_the_sampler_pass_through(mount, train):
    data = torchfs.file_dataset(train)
    distributed = ScheduledSampler(DistributedSampler(data, num_replicas=2, rank=1), data, mount=mount)
    distributed.set_epoch(4)
    assert distributed.epoch == distributed.sampler.epoch == 4 and distributed.num_replicas == 2
    assert not hasattr(ScheduledSampler(SequentialSampler(data), data, mount=mount), "set_epoch")
    assert isinstance(distributed, Sampler)


def test_a_million_samples_are_announced_in_pieces(mount):
    paths = [os.path.join(mount.point, "set", f"{number}.jpg") for number in range(1000)]
    sampler = ScheduledSampler([number % 1000 for number in range(1_000_000)], paths=paths, mount=mount)
    assert sum(1 for _ in sampler) == 1_000_000
    _, *lines = mount.texts[0].splitlines()
    assert len(lines) == 1_000_000 and lines[0] == "set/0.jpg" and lines[-1] == "set/999.jpg"


def test_a_program_ends_quietly_when_the_mount_is_gone(mount, train):
    program = """
import shutil, sys, torchfs
from torch.utils.data import SequentialSampler
data = torchfs.file_dataset(sys.argv[1])
list(torchfs.ScheduledSampler(SequentialSampler(data), data))
shutil.rmtree(torchfs.find_mount(data.root))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, train], env=environment, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_no_warning_while_all_is_well(mount, train):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = torchfs.file_dataset(train)
        list(ScheduledSampler(SequentialSampler(data), data))
