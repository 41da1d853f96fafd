"""Three public notebooks about norms on MNIST, trained as they were published, with controls.

    python benchmarks/originals.py eva8 runs/eva8-as-published --seeds 0-4
    python benchmarks/originals.py eva4 runs/eva4-as-published --seeds 0-2 --arms none,l1

Each original has its own network, augmentation and loop, and its own slips: they are the point. The
authors had one seed; here are as many as you ask for. A run that was stopped resumes from its last
epoch, and several processes may share a folder. The pages of the book read `study.json`,
`results.csv` and `mistakes.npz`. Copy these three to another machine, and the runs in them are not
trained again.

What is not as published: images are turned by torch's sampling in place of Pillow's, both to the
nearest pixel; the colour jitter does not round to whole bytes, and changes brightness before
contrast, where theirs draws the order; the order of the batches and the first weights come from
other random numbers. EVA4's session 6 and EVA8 draw a curve of losses that holds the penalty, EVA6
as well; here losses and penalties are separate columns.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from normnotes.augment import Augment, augment
from normnotes.checkpoints import Checkpoint, gather, restore
from normnotes.compare.folders import COLUMNS as USUAL
from normnotes.compare.folders import machine, read_history, to_csv, write_arrays
from normnotes.compare.results import pack_mistakes, unpack_mistakes
from normnotes.core import check_choice, seed_generator, write_atomic
from normnotes.data import DataSet, load_data, normalize
from normnotes.evaluation import Evaluation, evaluate
from normnotes.models import ARCHS, Arch, Net, conv1x1, conv3x3, global_avg_pool, max_pool

# --- what the originals trained


def no_l1(model: nn.Module, batch: int) -> float:
    "No penalty."
    return 0.0


def l1_sum(strength: float) -> Callable[[nn.Module, int], Tensor]:
    "The sum of |p| over all parameters, gains and biases included."
    return lambda model, batch: strength * sum(p.abs().sum() for p in model.parameters())


def l1_mean(strength: float) -> Callable[[nn.Module, int], Tensor]:
    "The sum of each tensor's *mean* |p|: some eighty times less in a fresh network."
    return lambda model, batch: strength * sum(p.abs().mean() for p in model.parameters())


def l1_fading(strength: float) -> Callable[[nn.Module, int], Tensor]:
    "The sum of |p|, divided by the number of the batch: after a hundred batches little is left."
    return lambda model, batch: l1_sum(strength)(model, batch) / (batch + 1)


@dataclass(frozen=True)
class Arm:
    "One of the networks of an original, or a control."

    about: str
    model: Callable[[int], nn.Module]  # from a seed
    l1: Callable[[nn.Module, int], Tensor | float] = no_l1  # from the model and the batch's number
    momentum: float = 0.9
    weight_decay: float = 0.0
    cut: int = 0  # epochs between two cuts of the rate to a tenth; 0 for none


@dataclass(frozen=True)
class Original:
    "A notebook: its question here, what it did, and what it said."

    question: str
    pairs: tuple[tuple[str, str], ...]  # the planned comparisons
    arms: dict[str, Arm]
    published: dict[str, dict[str, float]]  # test accuracies in percent: from where, of which arm
    rotate: float  # degrees, to either side
    jitter: float  # of brightness and contrast
    batch_size: int
    epochs: int
    lr: float
    one_cycle: bool = False  # torch's OneCycleLR, which moves the momentum as well
    jitter_first: bool = False  # before the rotation, not after it
    margin: float = 0.1  # points of test accuracy that do not matter


def net(norm: str | Callable[[int], nn.Module], arch: str | Arch) -> Callable[[int], nn.Module]:
    return lambda seed: Net(norm, arch=arch, seed=seed)


def per_pixel(arch: str | Arch) -> Callable[[int], nn.Module]:
    "`nn.LayerNorm([C, H, W])`: a gain and a bias for each pixel of each channel."

    def model(seed: int) -> nn.Module:
        sides = iter((26, 24, 10, 8, 6, 6))  # of the channels, in EVA6's net and in EVA8's

        def norm(channels: int) -> nn.Module:
            return nn.LayerNorm([channels, *[next(sides)] * 2])

        return Net(norm, arch=arch, seed=seed)

    return model


def eva6_groups(channels: int) -> nn.Module:
    "EVA6's groups, layer by layer: 2, 4, 3, 4, 4, 4."
    return nn.GroupNorm({8: 2, 12: 3, 16: 4}[channels], channels)


PLAIN = ('relu', 'norm')
EVA6_NET = Arch(
    {'C1': conv3x3(8, PLAIN, 0), 'C2': conv3x3(16, PLAIN, 0), 'c3': conv1x1(8), 'P1': max_pool()}
    | {'C4': conv3x3(12, PLAIN, 0), 'C5': conv3x3(16, padding=0), 'C6': conv3x3(16, padding=0)}
    | {'C7': conv3x3(16, PLAIN), 'GAP': global_avg_pool(), 'c8': conv1x1(0)},
    dropout=0.04,
)
rows = ARCHS['eva4'].rows
EVA4_NET = replace(ARCHS['eva4'], rows=rows | {'C4': replace(rows['C4'], steps=PLAIN)})
EVA4_BN, FADING = net('bn', EVA4_NET), l1_fading(5e-5)


def eva8(lr: float, cut: int, *published: float) -> Original:
    arms = {
        'ln per pixel': Arm('nn.LayerNorm([C, H, W]), as published', per_pixel('eva8')),
        'bn+l1': Arm('batch norm with L1 of 5e-4, as published', net('bn', 'eva8'), l1_sum(5e-4)),
        'gn+l1': Arm(
            'two groups with the L1 that was never switched off, as published',
            net('gn:2', 'eva8'),
            l1_sum(5e-4),
        ),
        'gn': Arm('control: group norm without L1', net('gn:2', 'eva8')),
        'ln': Arm('control: layer norm with a gain per channel', net('ln', 'eva8')),
        'bn': Arm('control: batch norm without L1', net('bn', 'eva8')),
    }
    return Original(
        'Was layer norm best, or was it the only one without a penalty? And do its 57,064 further '
        'parameters help?',
        (('ln per pixel', 'gn+l1'), ('ln per pixel', 'bn+l1'), ('gn', 'gn+l1'), ('bn', 'bn+l1'))
        + (('ln per pixel', 'ln'), ('ln per pixel', 'gn'), ('ln per pixel', 'bn')),
        {name: replace(arm, cut=cut) for name, arm in arms.items()},
        {'last epoch': dict(zip(arms, published, strict=False))},
        rotate=8,
        jitter=0,
        batch_size=128,
        epochs=20,
        lr=lr,
    )


ORIGINALS = {
    'eva8': eva8(0.01, 0, 99.26, 98.65, 98.88),
    'eva8-steps': eva8(0.3, 6, 99.34, 98.93, 98.93),
    'eva6': Original(
        'Is group norm ahead, as in both published runs? Batch norm with L1 and layer norm '
        'changed places between the two; what of that is layer norm per pixel, which the first '
        'run had? And did its L1, a mean, do anything?',
        (('gn', 'ln'), ('gn', 'bn+l1'), ('bn+l1', 'ln'), ('bn+l1', 'bn'), ('ln per pixel', 'ln')),
        {
            'gn': Arm('two, three or four groups', net(eva6_groups, EVA6_NET)),
            'ln': Arm('nn.GroupNorm(1, C), of the second run', net('ln', EVA6_NET)),
            'bn+l1': Arm('batch norm with L1 of means', net('bn', EVA6_NET), l1_mean(1e-4)),
            'bn': Arm('control: batch norm without L1', net('bn', EVA6_NET)),
            'ln per pixel': Arm('nn.LayerNorm([C, H, W]), of the first run', per_pixel(EVA6_NET)),
        },
        {
            'first run, last epoch': {'gn': 99.52, 'ln per pixel': 99.46, 'bn+l1': 99.48},
            'second run, last epoch': {'gn': 99.54, 'ln': 99.48, 'bn+l1': 99.47},
        },
        rotate=7,
        jitter=0.4,
        batch_size=64,
        epochs=20,
        lr=0.015,
        one_cycle=True,
    ),
    'eva4': Original(
        'Is L1 best and L2 worse than no penalty, where the four runs also differ in momentum, in '
        'the schedule and in how the penalty fades? What is left of L1 at its own schedule?',
        (('l1', 'none'), ('l2', 'none'), ('l1+l2', 'none'), ('l1', 'l2'), ('l1', 'l1+l2'))
        + (('l1', 'none constant'),),
        {
            'none': Arm('momentum 0.9, steps', EVA4_BN, cut=3),
            'l1': Arm('momentum 0.9, constant rate, fading L1 of 5e-5', EVA4_BN, FADING),
            'l2': Arm('no momentum, steps, L2 of 3e-4', EVA4_BN, no_l1, 0, 3e-4, 3),
            'l1+l2': Arm('no momentum, steps, L2 of 3e-5, fading L1', EVA4_BN, FADING, 0, 3e-5, 3),
            'none constant': Arm('control: the run with L1, without L1', EVA4_BN),
        },
        {  # the public log of the run with both ends after epoch 30
            'best epoch': {'none': 99.31, 'l1': 99.36, 'l2': 99.24, 'l1+l2': 99.16},
            'last epoch': {'none': 99.30, 'l1': 99.29, 'l2': 99.21},
        },
        rotate=10,
        jitter=0.1,
        batch_size=32,
        epochs=40,
        lr=0.04,
        jitter_first=True,
    ),
}

# --- how they trained


def turn(x: Tensor, degrees: Tensor) -> Tensor:
    "Rotate every image by its own angle, to the nearest pixel; outside is a byte of 1, as theirs."
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    zero = torch.zeros_like(cos)
    maps = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(x.shape), align_corners=False)
    return F.grid_sample(x - 1 / 255, grid, mode='nearest', align_corners=False) + 1 / 255


def batches(original: Original, data: DataSet, seed: int, epoch: int):
    "Shuffled, turned, jittered and normalized."
    split, size = data.train, original.batch_size
    order = torch.randperm(len(split), generator=seed_generator(seed, 'order', epoch))
    draws = seed_generator(seed, 'augment', epoch)
    jitter = Augment(brightness=original.jitter, contrast=original.jitter)
    for rows in order.split(size * max(1, 1024 // size)):
        part = split[rows]
        x = part.images.float() / 255
        degrees = original.rotate * (2 * torch.rand(len(x), generator=draws) - 1)
        if original.jitter_first:
            x = turn(augment(x, jitter, draws), degrees)
        else:
            x = augment(turn(x, degrees), jitter, draws)
        x = normalize(x, data.mean, data.std)
        yield from zip(x.split(size), part.labels.split(size), strict=True)


def make_schedule(original: Original, arm: Arm, optimizer: torch.optim.SGD, steps: int):
    "The schedule, which moves once per batch, or once per epoch."
    if original.one_cycle:
        return OneCycleLR(optimizer, original.lr, epochs=original.epochs, steps_per_epoch=steps)
    return StepLR(optimizer, arm.cut) if arm.cut else LambdaLR(optimizer, lambda epoch: 1.0)


def train(
    original: Original, arm: Arm, seed: int, data: DataSet, path: Path
) -> tuple[list[dict[str, float]], Evaluation]:
    "One run, from its last epoch if it was stopped: a row per epoch, and the last evaluation."
    model = arm.model(seed).to(memory_format=torch.channels_last)  # faster, the same otherwise
    optimizer = torch.optim.SGD(
        model.parameters(), original.lr, arm.momentum, weight_decay=arm.weight_decay
    )
    steps = -(-len(data.train) // original.batch_size)
    schedule = make_schedule(original, arm, optimizer, steps)
    about = {'arm': arm.about, 'seed': seed, 'epochs': original.epochs, 'data': data.checksum}
    keep = Checkpoint(path, about, {})
    tensors, history = keep.read() or ({}, [])
    if history:
        restore(tensors, model=model, optimizer=optimizer)
        with warnings.catch_warnings():  # torch misses the steps of the optimizer
            warnings.simplefilter('ignore', UserWarning)
            for _ in range(len(history) * (steps if original.one_cycle else 1)):
                schedule.step()
    evaluation = evaluate(model, data) if len(history) == original.epochs else None
    for epoch in range(len(history) + 1, original.epochs + 1):
        torch.manual_seed(seed_generator(seed, 'dropout', epoch).initial_seed())
        began, sums = time.perf_counter(), torch.zeros(3, dtype=torch.float64)
        rate = optimizer.param_groups[0]['lr']
        model.train()
        for batch, (x, y) in enumerate(batches(original, data, seed, epoch)):
            logits = model(x)
            loss, penalty = F.cross_entropy(logits, y), torch.as_tensor(arm.l1(model, batch))
            optimizer.zero_grad()
            (loss + penalty).backward()
            optimizer.step()
            if original.one_cycle:
                schedule.step()
            right = (logits.argmax(1) == y).sum()
            sums += torch.tensor([loss.item() * len(y), right.item(), penalty.item() * len(y)])
        if not original.one_cycle:
            schedule.step()
        evaluation, count = evaluate(model, data), len(data.train)
        row = dict(
            zip(('train_loss', 'train_acc', 'penalty'), (sums / count).tolist(), strict=True)
        )
        row |= {'epoch': epoch, 'lr': rate, 'train_acc': 100 * row['train_acc']}
        row |= {'last_batch_loss': loss.item()}
        row |= {'test_loss': evaluation.loss, 'test_acc': evaluation.accuracy}
        history.append(row | {'seconds': time.perf_counter() - began})
        keep.write(gather(model=model, optimizer=optimizer), history)
        took = f'{history[-1]["seconds"]:.0f} s'
        print(path.parent.name, f'epoch {epoch}: {evaluation.accuracy:.2f} %, {took}', flush=True)
    assert evaluation
    return history, evaluation


# --- what is kept

COLUMNS = [*USUAL, 'last_batch_loss']  # EVA4 drew this one for L2, and the mean for the others


def stored(out: Path) -> tuple[pd.DataFrame, dict[tuple[str, int], Evaluation]]:
    "The finished runs of a folder."
    if not (out / 'results.csv').exists():
        return pd.DataFrame(columns=COLUMNS), {}
    with np.load(out / 'mistakes.npz') as arrays:
        return read_history(out / 'results.csv', COLUMNS), unpack_mistakes(dict(arrays))


def add_run(out: Path, arm: str, seed: int, rows: list[dict[str, float]], said: Evaluation) -> None:
    "Add a finished run to the tables; the CSV file comes last, and says what is finished."
    with FileLock(out / 'tables.lock'):
        table, evaluations = stored(out)
        added = pd.DataFrame(
            [{'variant': arm, 'seed': seed} | row for row in rows], columns=COLUMNS
        )
        table = pd.concat([table, added]) if len(table) else added
        write_arrays(out / 'mistakes.npz', pack_mistakes(evaluations | {(arm, seed): said}))
        write_atomic(out / 'results.csv', to_csv(table.sort_values(['variant', 'seed', 'epoch'])))


def write_study(out: Path, name: str, original: Original, data: DataSet) -> None:
    "Write down the question before anything runs; refuse a folder that holds another."
    recipe = 'rotate jitter jitter_first batch_size epochs lr one_cycle'.split()
    about = {
        'name': f'{name}-as-published',
        'question': original.question,
        'pairs': [list(pair) for pair in original.pairs],
        'margin': original.margin,
        'arms': {arm: value.about for arm, value in original.arms.items()},
        'published': original.published,
        'recipe': {key: getattr(original, key) for key in recipe},
        'images': data.checksum,
    }
    path = out / 'study.json'
    old = json.loads(path.read_text()) if path.exists() else {}
    if different := [key for key in about if old and old.get(key) != about[key]]:
        raise SystemExit(f'{out} holds another study ({", ".join(different)}); give another folder')
    if not old:
        made = machine('cpu') | {'data': data.source}
        write_atomic(path, json.dumps(about | {'made_with': made}, indent=1) + '\n')


def run(
    name: str, out: Path, seeds: list[int], arms: list[str], data: DataSet, original: Original
) -> None:
    "Train what is not finished, seed by seed."
    out.mkdir(parents=True, exist_ok=True)
    write_study(out, name, original, data)
    for seed in seeds:
        for arm in arms:
            path = out / 'runs' / f'{arm.replace(" ", "-")}-s{seed}'
            path.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(path / 'lock', timeout=0):
                    table, _ = stored(out)
                    if (arm, seed) in set(zip(table.variant, table.seed, strict=True)):
                        continue
                    rows, said = train(
                        original, original.arms[arm], seed, data, path / 'checkpoint.safetensors'
                    )
                    add_run(out, arm, seed, rows, said)
            except Timeout:
                print(f'{arm} seed {seed}: another process has it', flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('original', choices=ORIGINALS, help='which of them')
    parser.add_argument('out', type=Path, help='the folder of the study')
    parser.add_argument('--seeds', default='0-4', help='such as 0-4, or 3 (default: 0-4)')
    parser.add_argument('--arms', help='some of the arms, with commas (default: all)')
    parser.add_argument('--epochs', type=int, help='fewer, for a trial in a folder of its own')
    parser.add_argument('--data-dir', help='the data folder')
    args = parser.parse_args(argv)
    original = ORIGINALS[args.original]
    original = replace(original, epochs=original.epochs if args.epochs is None else args.epochs)
    arms = args.arms.split(',') if args.arms else list(original.arms)
    try:
        first, _, last = args.seeds.partition('-')
        seeds = list(range(int(first), int(last or first) + 1))
        if not seeds or original.epochs < 1:
            raise ValueError(f'{len(seeds)} seeds and {original.epochs} epochs: use 1 or more')
        for arm in arms:
            check_choice('arm', arm, original.arms)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    run(args.original, args.out, seeds, arms, load_data('mnist', args.data_dir), original)


if __name__ == '__main__':
    main()
