"""A mount as programs see it: the folder `.torchfs` at its root, which is in no listing. Its files are described in
docs/schedule.md (`schedule`) and docs/stats.md (`stats`, `version`) of the TorchFS repository."""

import errno
import json
import os
from itertools import islice
from typing import Any, Dict, Iterable, Optional, Union

PathLike = Union[str, "os.PathLike[str]"]

# Lines that are joined before they are written: some hundred KiB, however long an order is.
_LINES_PER_WRITE = 16384

# What an errno means for orders.
_REASONS = {errno.EROFS: "the mount is read-only and takes no orders: mount it without ro"}


class Mount:
    """The TorchFS mount at `point`. Makes no check; `find_mount` does."""

    def __init__(self, point: PathLike) -> None:
        self.point = os.path.realpath(point)

    def __fspath__(self) -> str:
        return self.point

    def __repr__(self) -> str:
        return f"Mount({self.point!r})"

    def announce(self, header: Dict[str, Any], lines: Iterable[str]) -> None:
        """Announces the order of an epoch: what will be read, one entry per line.

        Raises OSError with the mount's reason if it does not accept the order.
        """
        try:
            self._write(header, lines)
        except OSError as error:
            # What is wrong with a text the mount says in words; an errno has none.
            reason = self.announced().get("error") if error.errno == errno.EINVAL else _REASONS.get(error.errno)
            raise OSError(error.errno, reason or error.strerror, self._file("schedule")) from error

    def announced(self) -> Dict[str, Any]:
        """What is announced, as the mount understood it. Empty if it does not tell."""
        try:
            with open(self._file("schedule"), encoding="utf-8") as file:
                told = json.load(file)
        except (OSError, ValueError):
            return {}
        return told if isinstance(told, dict) else {}

    def forget(self) -> None:
        """Withdraws everything that was announced."""
        descriptor = self._open()
        try:
            # A text of no bytes says the same, but only a while after close: the mount cannot tell it from one that is yet to be written.
            _write_all(descriptor, b"\n")
        finally:
            os.close(descriptor)

    def stats(self) -> Dict[str, Any]:
        """The mount's counters since it was mounted."""
        with open(self._file("stats"), encoding="utf-8") as file:
            return json.load(file)

    def _file(self, name: str) -> str:
        return os.path.join(self.point, ".torchfs", name)

    def _open(self) -> int:
        # Not O_CREAT: on what is no mount, or an older one, nothing shall appear.
        return os.open(self._file("schedule"), os.O_WRONLY | os.O_TRUNC)

    def _write(self, header: Dict[str, Any], lines: Iterable[str]) -> None:
        remaining = iter(lines)
        descriptor = self._open()
        try:
            some = [json.dumps(header)]
            while some:
                _write_all(descriptor, ("\n".join(some) + "\n").encode())
                some = list(islice(remaining, _LINES_PER_WRITE))
        except BaseException:
            _close_quietly(descriptor)
            raise
        # The mount reads the order when the file is closed, and close tells what is wrong with it.
        os.close(descriptor)


def find_mount(path: PathLike) -> Optional[Mount]:
    """The TorchFS mount that holds `path`, or None.

    Raises OSError (ENOTCONN) if its process was killed.
    """
    folder = os.path.realpath(path)
    while True:
        if _is_mount(folder):
            return Mount(folder)
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent


def _is_mount(folder: str) -> bool:
    try:
        os.stat(os.path.join(folder, ".torchfs", "version"))
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            reason = "the process of its mount was killed; `torchfs mount` of the mountpoint mounts it again"
            raise OSError(errno.ENOTCONN, reason, _first_gone(folder)) from error
        return False
    return True


def _first_gone(folder: str) -> str:
    """The mountpoint of a killed mount."""
    while True:
        parent = os.path.dirname(folder)
        try:
            os.stat(parent)
            return folder
        except OSError:
            folder = parent


def stats(path: PathLike) -> Dict[str, Any]:
    """The counters of the mount that holds `path`.

    Raises ValueError if there is none, FileNotFoundError if there is no such path either, and OSError (ENOTCONN) if its process was killed.
    """
    mount = find_mount(path)
    if mount is None:
        os.stat(path)
        raise ValueError(f"{os.fspath(path)} is not on a TorchFS mount")
    return mount.stats()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _close_quietly(descriptor: int) -> None:
    """Closes after something else failed, which is what the caller hears of."""
    try:
        os.close(descriptor)
    except OSError:
        pass
