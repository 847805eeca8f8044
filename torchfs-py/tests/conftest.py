"""Files to read, and mounts to announce to: one that is only a folder, and a real one if there is a binary."""

import json
from pathlib import Path

import pytest

from torchfs import Mount, listing


class RecordedMount(Mount):
    """A plain folder that has what a mount has in `.torchfs`, and keeps every text that was written to it."""

    def __init__(self, point):
        super().__init__(point)
        self.texts = []
        self._indices = {}
        own = Path(self.point, ".torchfs")
        own.mkdir()
        (own / "version").write_text("fake\n")
        (own / "stats").write_text('{"opens": 7}')
        (own / "schedule").touch()

    def announce(self, header, lines):
        super().announce(header, lines)
        self.texts.append(Path(self.point, ".torchfs", "schedule").read_text())

    @property
    def orders(self):
        """What was announced, one after the other: the header, and each file's index in the listing of its dataset's folder."""
        return [(json.loads(header), [self._index(*entry.split("/", 1)) for entry in entries])
                for header, *entries in map(str.splitlines, self.texts)]

    def _index(self, folder, path):
        if folder not in self._indices:
            self._indices[folder] = {path: index for index, path in enumerate(listing(Path(self.point, folder)))}
        return self._indices[folder][path]

    def final(self):
        """The order of each epoch that counts in the end: the last one announced for it."""
        return {header["epoch"]: entries for header, entries in self.orders}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """As torchrun says it where one rank is on each machine."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")


@pytest.fixture
def mount(tmp_path):
    point = tmp_path / "mount"
    point.mkdir()
    return RecordedMount(point)


@pytest.fixture
def train(mount):
    """A folder of 60 files in three classes, whose contents tell their paths."""
    return make_files(Path(mount.point, "train"), 60)


def make_files(folder, count):
    for number in range(count):
        path = Path(folder, f"class-{number % 3}", f"{number:04}.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(path.relative_to(folder)))
    return str(folder)
