"""DLIO's data loader for PyTorch, with its sampler wrapped, so that the mount is told each epoch's order."""

import os
from contextlib import contextmanager

from dlio_benchmark.common.enumerations import DatasetType
from dlio_benchmark.data_loader import torch_data_loader
from dlio_benchmark.utils.utility import DLIOMPI
from torchfs import ScheduledSampler


class ScheduledDataLoader(torch_data_loader.TorchDataLoader):
    """Chosen with reader.data_loader_classname. Accelerators are MPI ranks that share a mount: the first announces for all."""

    def read(self):
        with replaced(torch_data_loader, "dlio_sampler", self.sampler):
            super().read()

    def sampler(self, *arguments):
        training = self.dataset_type is DatasetType.TRAIN
        files = self._args.file_list_train if training else self._args.file_list_eval
        samples = self._args.num_samples_per_file
        return ScheduledSampler(
            plain_sampler(*arguments),
            paths=[os.path.abspath(file) for file in files for _ in range(samples)],
            num_workers=self._args.read_threads,
            batch_size=self.batch_size,
            gather=DLIOMPI.get_instance().comm().gather if self._args.comm_size > 1 else None,
        )


plain_sampler = torch_data_loader.dlio_sampler


@contextmanager
def replaced(module, name, other):
    """DLIO makes sampler and loader in one function, so the sampler is replaced where that looks for it."""
    before = getattr(module, name)
    setattr(module, name, other)
    try:
        yield
    finally:
        setattr(module, name, before)
