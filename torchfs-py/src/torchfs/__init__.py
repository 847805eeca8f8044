"""Tells a TorchFS mount in which order PyTorch will read, so that training does not wait for storage.

Nothing here needs a mount to work: without one, datasets and samplers are plain ones, and a warning says so. PyTorch is
imported when `ScheduledSampler` is first used.
"""

from typing import TYPE_CHECKING, Any

from torchfs.files import FileDataset, file_dataset, listing
from torchfs.mount import Mount, find_mount, stats

if TYPE_CHECKING:
    from torchfs.sampler import ScheduledSampler

__all__ = ["FileDataset", "Mount", "ScheduledSampler", "file_dataset", "find_mount", "listing", "stats"]


def __getattr__(name: str) -> Any:
    if name == "ScheduledSampler":
        from torchfs.sampler import ScheduledSampler

        return ScheduledSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
