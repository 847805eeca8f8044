"""Tells a TorchFS mount in which order PyTorch will read, so that training does not wait for storage.

Nothing here needs a mount to work: without one, datasets and samplers are plain ones, and a warning says so. PyTorch is
imported when `ScheduledSampler` is first used.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, List

from torchfs.files import FileDataset, file_dataset, listing
from torchfs.mount import Mount, find_mount, stats

if TYPE_CHECKING:
    from torchfs.sampler import ScheduledSampler

__version__ = "0.1.0"

__all__ = ["FileDataset", "Mount", "file_dataset", "find_mount", "listing", "stats"]
if find_spec("torch"):
    __all__.append("ScheduledSampler")


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "ScheduledSampler":
        from torchfs.sampler import ScheduledSampler

        return ScheduledSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
