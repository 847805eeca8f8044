"""`ScheduledSampler`: any sampler, whose order a TorchFS mount is told before it is read."""

import os
import sys
import warnings
from array import array
from itertools import chain
from operator import index
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional

import torch
from torch.utils.data import DataLoader, Sampler

from torchfs.files import first_path, name_files
from torchfs.future import draws_from, epoch_of, innermost, next_time, of_ranks_after
from torchfs.mount import Mount, PathLike, find_mount
from torchfs.plan import Order, plan_of

# How much of an epoch is handed out before the next one is looked at: the first batches come first.
_AHEAD_AFTER = 1 / 8

# So often in a row the next order may turn out another than was foreseen; then it is not foreseen any more.
_WRONG_MAX = 2

# Whoever is warned is elsewhere.
_NOT_THE_CALLER = tuple(os.path.join(os.path.dirname(file), "") for file in (__file__, torch.__file__))


class ScheduledSampler(Sampler):
    """Yields exactly what `sampler` yields, and tells the mount that holds the files of `dataset`.

    Each time it is iterated, it draws the whole order from `sampler` and announces it. Where the order after that can be
    known without drawing it, it is announced during the epoch. Attributes of `sampler`, such as `set_epoch`, pass through.

    sampler: any sampler with a length, of samples or of batches of them.
    dataset: a `file_dataset`, torchvision's ImageFolder or DatasetFolder, a Subset or ConcatDataset of these, or
        anything with `paths`.
    paths: the path of each sample, for other datasets.
    mount: a path on the mount; found by itself otherwise.
    epoch: the number of the first order, which `torchfs stats` will show; otherwise it follows what was announced before.
    num_workers, batch_size: the data loader's; with them the mount knows which worker opens which file. A batch sampler
        tells its size by itself.
    gather: if several processes read through one mount: given the indices that this one reads, returns the indices of each
        in the process that shall announce them, and None in the others, as MPI's gather does. A DistributedSampler under
        torchrun needs none: the first rank of each machine works out the orders of the others.

    Raises TypeError or ValueError for arguments that cannot be meant. What cannot be announced is told by a warning, and
    training goes on.
    """

    def __init__(
        self,
        sampler: Any,
        dataset: Any = None,
        *,
        paths: Optional[Iterable[PathLike]] = None,
        mount: Optional[PathLike] = None,
        epoch: Optional[int] = None,
        num_workers: Optional[int] = None,
        batch_size: Optional[int] = None,
        gather: Optional[Callable[[array], Optional[List[array]]]] = None,
    ) -> None:
        if isinstance(sampler, DataLoader):
            raise TypeError("a DataLoader is no sampler: wrap the sampler that it is given")
        # Not Sampler.__init__: its only argument has come and gone between versions of PyTorch.
        self.sampler = sampler
        self._epoch = _whole("epoch", epoch, 0)
        self._num_workers = _whole("num_workers", num_workers, 0)
        self._gather = gather
        self._batch_size = _whole("batch_size", batch_size, 1) or getattr(sampler, "batch_size", None)
        samples = _samples(dataset, paths)
        self.mount = _mount(mount, samples)
        self._files = self._name_files(samples)
        self._plan = plan_of(self.mount) if self.mount else None
        self._foreseen: Optional[Order] = None
        self._wrong = 0
        self._last_epoch: Optional[int] = None
        # How much set_epoch adds each time.
        self._step = 1

    def __iter__(self) -> Iterator[Any]:
        # Some samplers draw when they are asked for an iterator, others when for the first sample: so does this one.
        drawn = iter(self.sampler)
        return self._announced(drawn) if self._files is not None else drawn

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def _announced(self, drawn: Iterator[Any]) -> Iterator[Any]:
        drawn_order = list(drawn)
        announced = _quietly(self._begin, drawn_order)
        unknown = self._plan.take_unknown() if self._plan else None
        if unknown:
            _warn(unknown)
        ahead_after = int(len(drawn_order) * _AHEAD_AFTER) if announced else None
        for position, sample in enumerate(drawn_order):
            if position == ahead_after:
                _quietly(self._look_ahead)
            yield sample

    def _begin(self, drawn_order: List[Any]) -> None:
        epoch = epoch_of(self.sampler)
        if epoch is not None and self._last_epoch is not None:
            self._step = epoch - self._last_epoch
        self._last_epoch = epoch
        own = _flat(drawn_order)
        order = self._order(self._gather(own) if self._gather else read_here(self.sampler, own))
        if order is None:
            return
        if self._foreseen is not None:
            self._wrong = 0 if order.same_as(self._foreseen) else self._wrong + 1
            self._foreseen = None
        first, self._epoch = self._epoch, None
        self._plan.begin(self, order, epoch=first, at_least=epoch or 0)

    def _look_ahead(self) -> None:
        if self._gather or self._wrong >= _WRONG_MAX:
            return
        ahead = next_time(self.sampler, self._step)
        order = self._order(read_here(ahead, _flat(list(ahead)))) if ahead is not None else None
        if order is not None:
            self._foreseen = order
            self._plan.expect(self, order)

    def _order(self, orders: Optional[List[array]]) -> Optional[Order]:
        """What the mount is told, if it is this process that tells it, and there is something to tell."""
        indices = side_by_side(orders, self._batch_size or 1) if orders else None
        if not indices:
            return None
        if max(indices) >= len(self._files):
            raise ValueError(f"the sampler yields {max(indices)}, and the dataset has {len(self._files)} samples")
        hints: Dict[str, int] = {}
        if self._num_workers is not None:
            hints["workers"] = max(self._num_workers, 1) * len(orders)
        if self._batch_size is not None:
            hints["batch_size"] = self._batch_size
        return Order(self._files, indices, hints)

    def _name_files(self, dataset: Any) -> Optional[List[Optional[str]]]:
        """How the mount knows the samples. None if it does not, or if the order has no end."""
        if self.mount is None:
            return None
        if not hasattr(type(self.sampler), "__len__"):
            _warn(f"{type(self.sampler).__name__} has no length, so its order is not announced")
            return None
        named = name_files(dataset, self.mount)
        among = draws_from(self.sampler)
        if not named:
            _warn("the dataset is empty, so no order is announced")
            return None
        if among not in (None, len(named)):
            _warn(f"the sampler chooses among {among} samples, and the dataset has {len(named)}, so no order is announced: "
                  "give the dataset that the data loader reads")
            return None
        if not any(line is not None for line in named):
            _warn(f"no sample is below {self.mount.point}, so no order is announced")
            return None
        if not self._gather and ranks_clash(self.sampler):
            _warn("if other ranks on this machine read through the same mount, each replaces the others' orders: give gather=, "
                  "which collects them (torch.distributed's gather_object, say), or set LOCAL_WORLD_SIZE=1 if there are none")
        return named


def read_here(sampler: Any, own: array) -> Optional[List[array]]:
    """The orders that are read on this machine at the same time, in the process that announces them."""
    size, rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    others = of_ranks_after(sampler, size - 1) if size > 1 else None
    if others is None:
        return [own]
    return None if rank else [own, *(_flat(list(other)) for other in others)]


def ranks_clash(sampler: Any) -> bool:
    """Whether there are other ranks, and it cannot be known which of them are here or what they read."""
    size = os.environ.get("LOCAL_WORLD_SIZE")
    if size is None:
        return getattr(innermost(sampler), "num_replicas", 1) > 1
    return int(size) > 1 and of_ranks_after(sampler, 1) is None


def side_by_side(orders: List[array], batch_size: int) -> array:
    """Orders that are read at the same time, batch by batch in turn, as one."""
    if len(orders) == 1:
        return orders[0]
    together = array("q")
    for start in range(0, max(map(len, orders), default=0), batch_size):
        for order in orders:
            together.extend(order[start : start + batch_size])
    return together


def _flat(order: List[Any]) -> array:
    """The samples of an order of samples or batches."""
    if order and isinstance(order[0], (list, tuple)):
        order = list(chain.from_iterable(order))
    return array("q", map(index, order))


def _samples(dataset: Any, paths: Optional[Iterable[PathLike]]) -> Any:
    """What tells the paths of the samples."""
    if isinstance(paths, (str, bytes)):
        raise TypeError(f"paths= is the path of each sample, not one: {paths!r}")
    if dataset is None and paths is None:
        raise TypeError("the dataset is missing: give it, or the path of each sample as paths=")
    return dataset if paths is None else list(paths)


def _whole(name: str, number: Any, least: int) -> Optional[int]:
    """A number that was given as an argument, if one was."""
    if number is None:
        return None
    try:
        number = index(number)
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {number!r}") from None
    if number < least:
        raise ValueError(f"{name} is at least {least}, not {number}")
    return number


def _mount(given: Optional[PathLike], samples: Any) -> Optional[Mount]:
    path = first_path(samples) if given is None else given
    if path is None:
        _warn("the dataset is empty, so no order is announced")
        return None
    found = find_mount(path)
    if found is None:
        _warn(f"{os.fspath(path)} is {'no' if given is not None else 'not on a'} TorchFS mount, so no order is announced")
    return given if found and isinstance(given, Mount) else found


def _quietly(work: Callable[..., None], *arguments: Any) -> bool:
    """Whether it was done. Announcing only makes training faster: whatever fails in it must not end the training."""
    try:
        work(*arguments)
    except Exception as error:
        _warn(f"an order is not announced, and training goes on without: {error}")
        return False
    return True


def _warn(message: str) -> None:
    """Points at the line, of neither this package nor PyTorch, that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_NOT_THE_CALLER):
        level, frame = level + 1, frame.f_back
    warnings.warn(f"torchfs: {message}", RuntimeWarning, stacklevel=level)
