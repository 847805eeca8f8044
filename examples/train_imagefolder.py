#!/usr/bin/env python3
"""A small convolutional network, trained on a folder of images on a mount; what each epoch waited for is measured.

    torchfs put -r images / && torchfs mount --background /mnt/torchfs
    examples/train_imagefolder.py /mnt/torchfs/images            the order of each epoch is announced
    examples/train_imagefolder.py /mnt/torchfs/images --plain    it is not

The folder has one folder per class, as torchvision's ImageFolder wants it. `--make N` fills it with N real images first, as PNG, from
Debian's package dataset-fashion-mnist. Needs PyTorch and torchvision (Debian: python3-torch, python3-torchvision)."""

import argparse
import gzip
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "torchfs-py" / "src"))
import torchfs  # noqa: E402  (not installed, but beside this file)

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
SIDE = 28


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, in one folder per class")
    parser.add_argument("--plain", action="store_true", help="do not announce the order")
    parser.add_argument("--make", type=int, metavar="N", help="write so many images into the folder first")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.make:
        make_images(options.folder, options.make)
    torch.manual_seed(options.seed)

    images = ImageFolder(str(options.folder), transforms.Compose([transforms.Grayscale(), transforms.Resize(SIDE),
                                                                   transforms.CenterCrop(SIDE), transforms.ToTensor()]))
    # A generator that nothing else uses: so the wrapper knows the next epoch during this one.
    sampler = RandomSampler(images, generator=torch.Generator().manual_seed(options.seed))
    if not options.plain:
        sampler = torchfs.ScheduledSampler(sampler, images, num_workers=options.workers, batch_size=options.batch)
    loader = DataLoader(images, options.batch, sampler=sampler, num_workers=options.workers,
                        persistent_workers=options.workers > 0)
    model = network(len(images.classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    print(f"{len(images)} images of {len(images.classes)} classes, {'plain' if options.plain else 'announced'}")
    print("epoch     loss  accuracy  seconds  images/s  waited s  waited %  reads that waited  fetched ahead  fetched MB")
    before = counters(options.folder)
    for epoch in range(options.epochs):
        loss, accuracy, seconds, waited = train(model, optimizer, loader)
        now = counters(options.folder)
        waits, ahead, fetched = [since(before, now, name) for name in ("misses", "ahead_files", "storage_bytes")]
        print(f"{epoch:5} {loss:8.4f} {accuracy:9.2%} {seconds:8.2f} {len(images) / seconds:9.0f} {waited:9.2f} "
              f"{waited / seconds:9.1%} {waits:>18} {ahead:>14} {fetched if fetched == '-' else fetched / 1e6:>11}",
              flush=True)
        before = now


def train(model, optimizer, loader):
    """One epoch: loss, accuracy, seconds, and for how many of them the loop waited for data."""
    start, waited, losses, right, seen = time.perf_counter(), 0.0, 0.0, 0, 0
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        images, classes = batch
        answers = model(images)
        loss = nn.functional.cross_entropy(answers, classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(classes)
        right += (answers.argmax(1) == classes).sum().item()
        seen += len(classes)
    return losses / seen, right / seen, time.perf_counter() - start, waited


def network(classes):
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(32 * (SIDE // 4) ** 2, 64), nn.ReLU(), nn.Linear(64, classes))


def counters(folder):
    """What the cache of a folder's mount counted since it was mounted; nothing if there is none. (What it tells of each epoch it
    tells of the latest 32 only: `torchfs stats --epochs`.)"""
    mount = torchfs.find_mount(folder)
    return mount and mount.stats()["cache"] or {}


def since(before, now, name):
    return now[name] - before.get(name, 0) if name in now else "-"


def make_images(folder, count):
    """Writes the first images of Fashion-MNIST as PNG files, in one folder per class."""
    from PIL import Image

    try:
        with gzip.open(FASHION_MNIST / "train-images-idx3-ubyte.gz") as images:
            pixels = images.read()[16:]
        with gzip.open(FASHION_MNIST / "train-labels-idx1-ubyte.gz") as labels:
            classes = labels.read()[8:]
    except FileNotFoundError as missing:
        sys.exit(f"{missing.filename} is missing: apt-get install dataset-fashion-mnist")
    for number in range(min(count, len(classes))):
        path = folder / str(classes[number]) / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = pixels[number * SIDE * SIDE : (number + 1) * SIDE * SIDE]
        Image.frombytes("L", (SIDE, SIDE), image).save(path)


if __name__ == "__main__":
    main()
