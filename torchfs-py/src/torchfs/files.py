"""Datasets that are files: `file_dataset`, and how any dataset's files are named to a mount."""

import json
import os
from io import FileIO
from itertools import chain
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Union

from torchfs.mount import Mount, PathLike, find_mount

Transform = Callable[[bytes, str], Any]
Suffixes = Union[str, Iterable[str]]


def listing(root: PathLike) -> List[str]:
    """The regular files below `root`, relative to it, in the order of the bytes of their paths.

    Symbolic links are neither listed nor followed. A mount that is told indices counts the files of a folder in this order.
    """
    found: List[str] = []
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(os.path.join(root, below) if below else root) as entries:
            for entry in entries:
                path = os.path.join(below, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file(follow_symlinks=False):
                    found.append(path)
    return sorted(found, key=os.fsencode)


class FileDataset:
    """A map-style dataset whose samples are whole files. Made by `file_dataset`."""

    def __init__(self, root: PathLike, transform: Optional[Transform], suffixes: Suffixes) -> None:
        self.root = os.path.abspath(root)
        self.transform = transform
        # Says so if the process of its mount was killed; a folder elsewhere will do as well.
        find_mount(self.root)
        wanted = suffixes if isinstance(suffixes, str) else tuple(suffixes)
        self.paths = [os.path.join(self.root, path) for path in listing(self.root) if path.endswith(wanted)]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path = self.paths[index]
        with open(path, "rb", buffering=0) as file:
            content = _read(file, path)
        return content if self.transform is None else self.transform(content, path)


def _read(file: FileIO, path: str) -> bytes:
    try:
        return file.readall()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def file_dataset(path: PathLike, transform: Optional[Transform] = None, *, suffixes: Optional[Suffixes] = None) -> FileDataset:
    """The regular files below `path` as a map-style dataset, in the order of the bytes of their paths.

    A sample is the file's content, or `transform(content, path)`. With `suffixes`, one or several, only files whose names end
    so. Raises OSError (ENOTCONN) if the process of its mount was killed.
    """
    return FileDataset(path, transform, "" if suffixes is None else suffixes)


def name_files(dataset: Any, mount: Mount) -> List[Optional[str]]:
    """The line of an order that names each sample to `mount`, None for what is elsewhere. See `paths_of` for what a dataset
    may be.

    By path, not by index: the mount would count in its own listing, in which a file may have been added since.
    """
    return list(_relative(paths_of(dataset), mount.point))


def first_path(dataset: Any) -> Optional[str]:
    """A path that tells which mount a dataset is on; None if it has no sample."""
    if isinstance(dataset, FileDataset):
        return dataset.root
    if _is_subset(dataset):
        return first_path(dataset.dataset)
    return next(iter(paths_of(dataset)), None)


def paths_of(dataset: Any) -> Iterable[str]:
    """The path of each sample: of a list of paths, of a dataset with `paths`, or with `samples` or `imgs` as torchvision's, of
    a Subset of one, or of a ConcatDataset of several.

    Raises TypeError for other datasets.
    """
    if _is_subset(dataset):
        whole = list(paths_of(dataset.dataset))
        return (whole[index] for index in dataset.indices)
    if _is_concatenated(dataset):
        return chain.from_iterable(map(paths_of, dataset.datasets))
    attributes = (getattr(dataset, name, None) for name in ("paths", "samples", "imgs"))
    found: Any = next((each for each in (dataset, *attributes) if isinstance(each, (list, tuple))), None)
    if found is None:
        raise TypeError(f"{type(dataset).__name__} does not tell the paths of its samples: give them as paths=")
    return map(_path, found)


def _path(sample: Any) -> str:
    """The path in a sample, which is one or begins with one."""
    path = sample[0] if isinstance(sample, tuple) and sample else sample
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise TypeError(f"a sample is named by {type(path).__name__}, not by a path: give the paths as paths=")
    return os.fsdecode(path)


def _is_subset(dataset: Any) -> bool:
    """Whether it is a torch.utils.data.Subset, or anything that works the same way."""
    return hasattr(dataset, "dataset") and hasattr(dataset, "indices")


def _is_concatenated(dataset: Any) -> bool:
    """Whether it is a torch.utils.data.ConcatDataset, or anything that works the same way."""
    return hasattr(dataset, "datasets") and hasattr(dataset, "cumulative_sizes")


def _relative(paths: Iterable[str], point: str) -> Iterator[Optional[str]]:
    """Each path as a line of an order. Folders are looked up once each: there are far fewer of them than files."""
    folders: Dict[str, Optional[str]] = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = _below(os.path.realpath(folder), point)
        below = folders[folder]
        yield None if below is None else _line(os.path.join(below, name))


def _below(path: str, point: str) -> Optional[str]:
    """`path` relative to the folder `point`, "" for itself, None for what is not below it."""
    if path == point:
        return ""
    prefix = os.path.join(point, "")
    return path[len(prefix) :] if path.startswith(prefix) else None


def _line(path: str) -> str:
    """A path as an entry of an order. A name that is not UTF-8 cannot be told: the mount counts it as unknown."""
    if not _is_utf8(path):
        path = os.fsencode(path).decode("utf-8", "replace")
    return json.dumps(path) if "\n" in path or path[:1] in ("{", '"') or path[-1:] == "\r" else path


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
