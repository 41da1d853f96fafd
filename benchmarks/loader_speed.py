"""How fast are batches drawn from tensors, beside torchvision's DataLoader pipeline?

    python benchmarks/loader_speed.py                    # made-up images of the size of MNIST
    python benchmarks/loader_speed.py --data mnist       # the real ones
    python benchmarks/loader_speed.py --out speed.json   # keep the figures

Both sides take turns and draw whole epochs of the same images in the same run, with the same
augmentation and normalization, on the same cores (two, or as many as --cores says). The DataLoader
side is the usual one: worker processes put one PIL image at a time through torchvision's
transforms, and collate batches of 128. Workers stay alive between epochs, so their start does not
count.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time

import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from normnotes.augment import AUGMENTS
from normnotes.batches import Batches, Split
from normnotes.core import seed_generator, write_atomic
from normnotes.data import DataSet, load_data


class Pictures(Dataset):
    "The images of a split one by one, as torchvision.datasets.MNIST gives them."

    def __init__(self, split, transform):
        self.images = split.images.movedim(1, -1).squeeze(-1)
        self.labels, self.transform = split.labels, transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i].numpy())), int(self.labels[i])


def usual_transforms(name, data):
    aug, (_, h, w) = AUGMENTS[name], data.shape
    steps = []
    if aug.pad:
        steps.append(transforms.RandomCrop((h, w), padding=aug.pad))
    if aug.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if aug.shift or aug.scale:
        shift, scale = (aug.shift / w, aug.shift / h), (1 - aug.scale, 1 + aug.scale)
        steps.append(transforms.RandomAffine(aug.rotate, shift, scale))
    elif aug.rotate:
        steps.append(transforms.RandomRotation(aug.rotate))
    if aug.brightness or aug.contrast or aug.saturation or aug.hue:
        steps.append(transforms.ColorJitter(aug.brightness, aug.contrast, aug.saturation, aug.hue))
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(data.mean, data.std)]
    )


def made_up():
    "Noise of the size and shape of MNIST"
    generator = seed_generator(0, 'benchmark')
    images = torch.randint(0, 256, (70_000, 1, 28, 28), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, 10, (70_000,), generator=generator))
    return DataSet.of(
        'made-up', split[:60_000], split[60_000:], map(str, range(10)), 'noise of the size of MNIST'
    )


def timed(epoch):
    start, images = time.perf_counter(), 0
    for x, _ in epoch:
        images += len(x)
    return time.perf_counter() - start, images


def peak_memory():
    "Of this process, in MB"
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == 'darwin' else 1e3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--data',
        default='made-up',
        help="'made-up', or what load_data takes: mnist, digits, a folder",
    )
    parser.add_argument('--augments', default='light,eva6', help=f'of {", ".join(AUGMENTS)}')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--workers', type=int, default=2, help='processes of the DataLoader')
    parser.add_argument('--cores', type=int, default=2, help='cores that both sides may use')
    parser.add_argument('--repeats', type=int, default=3, help='epochs timed; the median counts')
    parser.add_argument('--out', help='a JSON file for the figures')
    args = parser.parse_args()

    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    torch.set_num_threads(args.cores)
    data = made_up() if args.data == 'made-up' else load_data(args.data)
    print(data)
    rows = []
    for name in args.augments.split(','):
        batches = Batches(data.train, args.batch_size, data.mean, data.std, augment=name)
        loader = DataLoader(
            Pictures(data.train, usual_transforms(name, data)),
            args.batch_size,
            shuffle=True,
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
        )
        timed(batches.epoch(0)), timed(loader)  # warm-up
        ours, theirs = [], []
        for epoch in range(1, args.repeats + 1):
            theirs.append(timed(loader))
            ours.append(timed(batches.epoch(epoch)))
        assert {images for _, images in ours + theirs} == {len(data.train)}
        slow, fast = (statistics.median(seconds for seconds, _ in runs) for runs in (theirs, ours))
        rows.append(
            {
                'augment': name,
                'dataloader_seconds': slow,
                'batches_seconds': fast,
                'ratio': slow / fast,
            }
        )
        times = f'DataLoader {slow:6.2f} s, Batches {fast:6.3f} s an epoch'
        print(f'{name:6} {times}: {slow / fast:.0f} times faster')
        del loader
    memory = peak_memory()
    if memory:
        print(f'at most {memory:.0f} MB resident in this process')
    if args.out:
        write_atomic(
            args.out,
            json.dumps(
                {
                    'data': args.data,
                    'images': len(data.train),
                    'batch_size': args.batch_size,
                    'workers': args.workers,
                    'cores': args.cores,
                    'repeats': args.repeats,
                    'rows': rows,
                    'peak_memory_mb': memory,
                    'torch': torch.__version__,
                    'torchvision': torchvision.__version__,
                    'python': platform.python_version(),
                    'machine': platform.machine(),
                },
                indent=1,
            )
            + '\n',
        )


if __name__ == '__main__':
    main()
