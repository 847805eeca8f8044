"""Which files a dataset has, how a mount knows them, and what is found out about mounts."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch.utils.data
import torchfs
from conftest import make_files
from torchfs.files import first_path, name_files


def write(root, *names):
    for name in names:
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).write_text("content")


def test_a_listing_is_sorted_by_the_bytes_of_whole_paths(tmp_path):
    # "." and "-" sort before "/", so a folder's files do not come in one piece; "Z" before "a"; two bytes after one.
    names = ["a/b", "a.b", "a-b", "a0", "a/0/c", "Z", "é", "z", b"\xff"]
    write(tmp_path, *names)
    expected = sorted(map(os.fsencode, names))
    assert [os.fsencode(path) for path in torchfs.listing(tmp_path)] == expected
    assert torchfs.listing(tmp_path)[:5] == ["Z", "a-b", "a.b", "a/0/c", "a/b"]


def test_a_listing_has_regular_files_only(tmp_path):
    write(tmp_path, "file", "folder/file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "linked").symlink_to("folder")
    os.mkfifo(tmp_path / "pipe")
    assert torchfs.listing(tmp_path) == ["file", "folder/file"]


def test_a_folder_that_is_missing_is_named_as_it_was_given(tmp_path):
    with pytest.raises(FileNotFoundError, match=f": '{tmp_path}/nowhere'$"):
        torchfs.file_dataset(tmp_path / "nowhere")


def test_samples_are_whole_files(tmp_path):
    write(tmp_path, "b", "a/c")
    dataset = torchfs.file_dataset(tmp_path)
    assert dataset.root == str(tmp_path)
    assert dataset.paths == [str(tmp_path / "a/c"), str(tmp_path / "b")]
    assert len(dataset) == 2 and dataset[0] == b"content" and list(dataset) == [b"content"] * 2
    transformed = torchfs.file_dataset(tmp_path, lambda content, path: (len(content), path))
    assert transformed[1] == (7, str(tmp_path / "b"))


def test_with_suffixes_others_are_left_out(mount):
    root = Path(mount.point, "set")
    write(root, "a.txt", "b.png", "c.txt", "d.jpg")
    dataset = torchfs.file_dataset(root, suffixes=[".png", ".jpg"])
    assert [os.path.basename(path) for path in dataset.paths] == ["b.png", "d.jpg"]
    assert name_files(dataset, mount) == ["set/b.png", "set/d.jpg"]
    one, none = torchfs.file_dataset(root, suffixes=".png"), torchfs.file_dataset(root, suffixes=[])
    assert (name_files(one, mount), name_files(none, mount)) == (["set/b.png"], [])


def test_a_dataset_goes_to_other_processes(tmp_path):
    write(tmp_path, "a")
    assert pickle.loads(pickle.dumps(torchfs.file_dataset(tmp_path)))[0] == b"content"


def test_the_root_of_a_mount_is_a_folder_too(mount):
    write(mount.point, "a")
    assert name_files(torchfs.file_dataset(mount.point), mount)[-1] == "a"


def test_subsets_name_their_own_files(mount, train):
    whole = torchfs.file_dataset(train)
    subset = torch.utils.data.Subset(torch.utils.data.Subset(whole, range(10, 30)), [5, 0, 19])
    named = name_files(whole, mount)
    assert name_files(subset, mount) == [named[15], named[10], named[29]]


def test_datasets_one_after_the_other_name_the_files_of_all(mount, train):
    whole = torchfs.file_dataset(train)
    parts = [torch.utils.data.Subset(whole, [7, 3]), torchfs.file_dataset(make_files(Path(mount.point, "more"), 2))]
    both = torch.utils.data.ConcatDataset(parts)
    named = name_files(whole, mount)
    assert name_files(both, mount) == [named[7], named[3], "more/class-0/0000.bin", "more/class-1/0001.bin"]
    assert first_path(both) == whole.paths[7]


@pytest.mark.parametrize("attribute", ["samples", "imgs"])
def test_folders_of_images_name_files_by_their_paths(mount, train, attribute):
    class Images:
        def __init__(self):
            setattr(self, attribute, [(path, 0) for path in torchfs.file_dataset(train).paths])

    assert name_files(Images(), mount)[1] == "train/class-0/0003.bin"


def test_torchvision_folders_are_known(mount, train):
    torchvision = pytest.importorskip("torchvision")
    images = torchvision.datasets.DatasetFolder(train, loader=str, extensions=(".bin",))
    assert name_files(images, mount)[59] == "train/class-2/0059.bin"


def test_paths_may_lead_through_links_and_elsewhere(mount, train, tmp_path):
    (tmp_path / "link").symlink_to(train)
    write(tmp_path, "outside")
    paths = [tmp_path / "link/class-0/0000.bin", tmp_path / "outside", Path(train, "class-1/0001.bin")]
    assert name_files(paths, mount) == ["train/class-0/0000.bin", None, "train/class-1/0001.bin"]


def test_names_that_would_be_misread_are_quoted(mount):
    names = ["new\nline", '{"epoch": 1}', '"quoted"', "plain {", os.fsdecode(b"\xff")]
    paths = [os.path.join(mount.point, name) for name in names]
    assert name_files(paths, mount) == ['"new\\nline"', '"{\\"epoch\\": 1}"', '"\\"quoted\\""', "plain {", "\ufffd"]


def test_a_dataset_that_does_not_tell_paths_is_refused(mount):
    with pytest.raises(TypeError, match="paths="):
        name_files(torch.utils.data.TensorDataset(torch.zeros(3)), mount)


def test_a_mount_is_found_from_anything_on_it(mount, train, tmp_path):
    assert torchfs.find_mount(mount.point).point == mount.point
    assert torchfs.find_mount(os.path.join(train, "class-0", "0000.bin")).point == mount.point
    (tmp_path / "link").symlink_to(train)
    assert torchfs.find_mount(tmp_path / "link").point == mount.point
    assert torchfs.find_mount(tmp_path) is None


def test_stats_are_those_of_the_mount(train, tmp_path):
    assert torchfs.stats(train) == {"opens": 7}
    with pytest.raises(ValueError, match="not on a TorchFS mount"):
        torchfs.stats(tmp_path)
    with pytest.raises(FileNotFoundError, match="No such file.*nowhere/x'"):
        torchfs.stats(tmp_path / "nowhere/x")


def test_of_a_killed_mount_it_is_told_what_to_do(mount, train, monkeypatch):
    stat = os.stat

    def of_a_killed_mount(path, **how):
        if os.fspath(path).startswith(mount.point):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), path)
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", of_a_killed_mount)
    for asks in (torchfs.find_mount, torchfs.stats, torchfs.file_dataset):
        with pytest.raises(OSError, match="was killed; `torchfs mount`") as told:
            asks(train)
        assert (told.value.errno, told.value.filename) == (errno.ENOTCONN, mount.point)


def run(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)


def test_pytorch_is_imported_only_when_it_is_used():
    run("""
import sys, torchfs
torchfs.find_mount("/")
assert {"ScheduledSampler", "file_dataset", "__version__"} <= set(dir(torchfs))
assert "torch" not in sys.modules
torchfs.ScheduledSampler
assert "torch" in sys.modules
""")


def test_all_names_are_there_with_and_without_pytorch():
    run("from torchfs import *; ScheduledSampler; file_dataset")
    run("""
import importlib.util
find, importlib.util.find_spec = importlib.util.find_spec, lambda name: find(name) if name != "torch" else None
from torchfs import *
file_dataset
assert "ScheduledSampler" not in globals()
""")
