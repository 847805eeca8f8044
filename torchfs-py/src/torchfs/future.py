"""What a sampler will yield next time, found out without touching it or its random numbers."""

import copy
from typing import Any, List, Optional

import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

_RANDOM = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


def next_time(sampler: Any, epochs: int) -> Optional[Any]:
    """A sampler that yields now what `sampler` will yield next time, or None where nobody can know.

    It is known where the order follows from a seed and an epoch, which grows by `epochs`, or from a generator of the
    sampler's own. It is not where numbers are drawn from PyTorch's global generator, as the model draws from it, too.
    Subclasses may do anything, so of them nothing is known.
    """
    kind = type(sampler)
    if kind is SequentialSampler:
        return sampler
    if kind is DistributedSampler:
        ahead = copy.copy(sampler)
        ahead.set_epoch(sampler.epoch + epochs)
        return ahead
    if kind in _RANDOM and sampler.generator is not None:
        ahead = copy.copy(sampler)
        ahead.generator = torch.Generator(device=sampler.generator.device)
        ahead.generator.set_state(sampler.generator.get_state())
        return ahead
    if kind is BatchSampler:
        inner = next_time(sampler.sampler, epochs)
        if inner is not None:
            return BatchSampler(inner, sampler.batch_size, sampler.drop_last)
    return None


def innermost(sampler: Any) -> Any:
    """The sampler of samples that a batch sampler is made of; others are themselves."""
    while type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return sampler


def epoch_of(sampler: Any) -> Optional[int]:
    """The epoch that `set_epoch` told a sampler."""
    epoch = getattr(innermost(sampler), "epoch", None)
    return epoch if isinstance(epoch, int) else None


def draws_from(sampler: Any) -> Optional[int]:
    """How many samples a sampler chooses among, where it tells."""
    inner = innermost(sampler)
    source = inner.dataset if isinstance(inner, DistributedSampler) else getattr(inner, "data_source", None)
    return len(source) if hasattr(source, "__len__") else None


def of_ranks_after(sampler: Any, count: int) -> Optional[List[Any]]:
    """The samplers of the next `count` ranks of the same training, or None where they cannot be known."""
    kind = type(sampler)
    if kind is DistributedSampler:
        others = [copy.copy(sampler) for _ in range(count)]
        for after, other in enumerate(others, 1):
            other.rank = sampler.rank + after
        return others
    if kind is BatchSampler:
        others = of_ranks_after(sampler.sampler, count)
        return others and [BatchSampler(other, sampler.batch_size, sampler.drop_last) for other in others]
    return None
