"""How long does an epoch of MNIST take beside the plain loop, and how long do 99.2 % take?

    python benchmarks/training_speed.py epoch              # one epoch each, in turns: ratios
    python benchmarks/training_speed.py reach              # seconds until a test accuracy of 99.2 %

Both add what they find to nbs/results/training/speed.json, from which the training chapter takes
its figures. The plain loop is what five published notebooks share: torchvision's data set,
transforms image by image in a `DataLoader` with two workers, one step after another, and a
progress bar that reads the loss of every batch. Its recipe is theirs too: SGD with momentum 0.9
and the learning rate cut every few epochs. MNIST is found through `--data-dir` or $NORMNOTES_DATA.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms
from tqdm import tqdm

from normnotes.core import data_folder, write_atomic
from normnotes.data import load_data
from normnotes.models import Net
from normnotes.training import TrainConfig, fit

OUT = Path(__file__).resolve().parent.parent / 'nbs/results/training/speed.json'
FITS = {'fit': None, "fit, amp='auto'": 'auto'}  # name -> amp


def plain_loop(
    root: Path, images: int, epochs: int, args: argparse.Namespace
) -> Iterator[tuple[float, float]]:
    "Train as the notebooks do; yields the seconds and the test accuracy of each epoch"
    normal = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    jitter = [
        transforms.RandomRotation(7.0, fill=0),
        transforms.ColorJitter(brightness=0.1, contrast=0.1),
    ]
    train = Subset(
        datasets.MNIST(root, train=True, transform=transforms.Compose(jitter + normal)),
        range(images),
    )
    test = Subset(
        datasets.MNIST(root, train=False, transform=transforms.Compose(normal)), range(images // 6)
    )
    torch.manual_seed(1)
    train_loader = DataLoader(
        train, shuffle=True, batch_size=args.plain_batch, num_workers=args.workers
    )
    test_loader = DataLoader(
        test, shuffle=False, batch_size=args.plain_batch, num_workers=args.workers
    )
    model = Net('bn', seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.plain_lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=args.plain_step, gamma=0.1)
    for _ in range(epochs):
        began = time.perf_counter()
        model.train()
        bar, correct, seen = tqdm(train_loader, disable=None), 0, 0
        for x, y in bar:
            optimizer.zero_grad()
            prediction = model(x)
            loss = F.cross_entropy(prediction, y)
            loss.backward()
            optimizer.step()
            correct += prediction.argmax(1).eq(y).sum().item()
            seen += len(y)
            bar.set_description(f'loss={loss.item():.4f} accuracy={100 * correct / seen:.2f}')
        model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in test_loader:
                correct += model(x).argmax(1).eq(y).sum().item()
        schedule.step()
        yield time.perf_counter() - began, 100 * correct / len(test)


def epoch(args: argparse.Namespace) -> dict[str, Any]:
    "One epoch of each, in turns, `--rounds` times; testing is part of an epoch"
    data = load_data('mnist', args.data_dir)
    data = replace(data, train=data.train[: args.images], test=data.test[: args.images // 6])
    times: dict[str, list[float]] = {'plain loop': [], **{name: [] for name in FITS}}
    for _ in range(args.rounds):
        for name, found in times.items():
            if name == 'plain loop':
                seconds, _ = next(plain_loop(data_folder(args.data_dir), args.images, 1, args))
            else:
                config = TrainConfig(epochs=1, amp=FITS[name], device='cpu')
                seconds = fit(Net('bn', seed=0), data, config, progress='none').seconds
            found.append(round(seconds, 2))
            print(f'{name:20}{seconds:8.1f} s', flush=True)
    return {
        'seconds': {name: statistics.median(found) for name, found in times.items()},
        'all': times,
        'images': args.images,
    }


def reach(args: argparse.Namespace) -> dict[str, Any]:
    "Seconds until the test accuracy is at the target, which `fit` reaches in its last epoch."
    data = load_data('mnist', args.data_dir)
    found: dict[str, Any] = {}
    for name, amp in FITS.items():
        config = TrainConfig(epochs=args.epochs, amp=amp, device='cpu')
        run = fit(Net('bn', seed=0), data, config, progress='log')
        accuracy = run.history[-1]['test_acc']
        found[name] = {
            'seconds': round(run.seconds, 1),
            'epochs': args.epochs,
            'accuracy': accuracy,
        }
    total, accuracies = 0.0, [0.0]
    for seconds, accuracy in plain_loop(
        data_folder(args.data_dir), 60_000, args.plain_epochs, args
    ):
        total += seconds
        accuracies.append(accuracy)
        print(
            f'plain loop, epoch {len(accuracies) - 1}: {accuracy:.2f} %, {total:.0f} s', flush=True
        )
        if accuracy >= args.target:
            break
    found['plain loop'] = {
        'seconds': round(total, 1),
        'epochs': len(accuracies) - 1,
        'accuracy': max(accuracies),
    }
    return {
        'target': args.target,
        'runs': found,
        'plain_recipe': {
            'batch_size': args.plain_batch,
            'lr': args.plain_lr,
            'momentum': 0.9,
            'step_size': args.plain_step,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=('epoch', 'reach'))
    parser.add_argument('--data-dir', default=None)
    parser.add_argument('--images', type=int, default=60_000, help='epoch: training images to use')
    parser.add_argument(
        '--rounds', type=int, default=3, help='epoch: how often each takes its turn'
    )
    parser.add_argument('--epochs', type=int, default=6, help='reach: epochs of fit')
    parser.add_argument('--target', type=float, default=99.2)
    parser.add_argument(
        '--plain-epochs', type=int, default=20, help='reach: most epochs of the plain loop'
    )
    parser.add_argument('--plain-batch', type=int, default=128)
    parser.add_argument('--plain-lr', type=float, default=0.01)
    parser.add_argument(
        '--plain-step', type=int, default=6, help='epochs between two cuts of the learning rate'
    )
    parser.add_argument('--workers', type=int, default=2)
    parser.add_argument('--threads', type=int, default=None, help="default: torch's own choice")
    parser.add_argument(
        '--out', type=Path, default=OUT, help='the file of results; one process per --out'
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    result = {'epoch': epoch, 'reach': reach}[args.what](args)
    has_amx = getattr(torch.cpu, '_is_amx_tile_supported', bool)()
    result['machine'] = (
        f'{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, '
        f'{"with" if has_amx else "without"} bf16 matrix units'
    )
    stored = json.loads(args.out.read_text()) if args.out.exists() else {}
    write_atomic(args.out, json.dumps({**stored, args.what: result}, indent=1) + '\n')
    print(json.dumps(result, indent=1))


if __name__ == '__main__':
    main()
