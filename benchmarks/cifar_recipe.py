"""How the network and the recipe for CIFAR-10 were chosen, on 5,000 held-out training images.

    python benchmarks/cifar_recipe.py TRIAL ...               # one or more of the names below
    python benchmarks/cifar_recipe.py TRIAL --data pictures/  # train/CLASS/*, test/CLASS/*

No test image is seen. Each trial is one network with seed 0. It replaces its rows in
nbs/results/cifar10-norms/trials.csv, a row per epoch, from which the chapter on the networks takes
its numbers. Ten epochs of one trial take about six minutes on one core (separable: 15). Trials
with fewer epochs in the table than planned diverged, or were stopped when they had been decided.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from normnotes.core import write_atomic
from normnotes.data import DataSet, load_data
from normnotes.models import (
    Arch,
    CifarNet,
    Layer,
    conv1x1,
    conv3x3,
    count_params,
    global_avg_pool,
    max_pool,
)
from normnotes.training import DivergedError, TrainConfig, fit

OUT = Path(__file__).resolve().parent.parent / 'nbs/results/cifar10-norms/trials.csv'


RELU_NORM, NORM_RELU = ('relu', 'norm'), ('norm', 'relu')
Steps = tuple[str, ...]


def shape(widths: tuple[int, ...], steps: Steps, small: Steps = (), last: Steps = ()) -> Arch:
    "The assignment's shape: widths, steps behind the 3x3, the 1x1 and the last convolution."
    a, b, c, d, e, f = widths
    return Arch(
        {'C1': conv3x3(a, steps), 'C2': conv3x3(b, steps), 'c3': conv1x1(c, small)}
        | {'P1': max_pool(), 'C3': conv3x3(d, steps), 'C4': conv3x3(d, steps)}
        | {'C5': conv3x3(d, steps, add='C3'), 'c6': conv1x1(e, small), 'P2': max_pool()}
        | {'C7': conv3x3(f, steps), 'C8': conv3x3(f, steps)}
        | {'C9': conv3x3(f, last or steps, add='C7')}
        | {'GAP': global_avg_pool(), 'C10': conv1x1(0)},
        input_shape=(3, 32, 32),
    )


def separable(steps: Steps, between: Steps = (), last: Steps = ()) -> Arch:
    "The same shape in rows of two: each channel for itself over 3x3, then a mix of the channels."
    depthwise = Layer('conv', padding=1, depthwise=True, steps=between)

    def pair(name: str, channels: int, add: str = '') -> dict[str, Layer]:
        mix = conv1x1(channels, steps, add=add, add_after=steps[-1])
        return {f'd{name}': depthwise, f'C{name}': mix}

    end = pair('9', 96, 'C8')
    if last:
        end['C9'] = replace(end['C9'], steps=last, add_after='norm')

    return Arch(
        {'C1': conv3x3(32, steps)}
        | pair('2', 48)
        | {'c3': conv1x1(32, steps), 'P1': max_pool()}
        | (pair('3', 64) | pair('4', 64, 'C3') | pair('5', 64, 'C4'))
        | {'c6': conv1x1(48, steps), 'P2': max_pool()}
        | (pair('7', 96) | pair('8', 96, 'C7') | end)
        | {'GAP': global_avg_pool(), 'C10': conv1x1(0, bias=True)},
        input_shape=(3, 32, 32),
    )


FIRST, WIDE = (12, 16, 16, 32, 16, 32), (16, 16, 16, 28, 24, 32)
ARCHS = {
    'first': shape(FIRST, NORM_RELU),
    'wide': shape(WIDE, NORM_RELU),
    'wider at the input': shape((16, 24, 24, 28, 24, 28), NORM_RELU),
    'norms behind 1x1': shape(WIDE, NORM_RELU, NORM_RELU),
    'relu first': shape(WIDE, RELU_NORM, RELU_NORM),
    'chosen': shape(WIDE, RELU_NORM, RELU_NORM, NORM_RELU),
    'separable': separable(RELU_NORM),
    'separable, relu last': separable(RELU_NORM, last=NORM_RELU),
    'separable, norm first': separable(NORM_RELU),
    'separable, two norms': separable(NORM_RELU, ('norm',)),
}
TRIALS: dict[
    str, tuple[str, str, dict[str, Any]]
] = {  # norm, architecture, changes to the settings
    'first, 20 epochs': ('bn', 'first', {'epochs': 20}),
    'first': ('bn', 'first', {}),
    'wide': ('bn', 'wide', {}),
    'wider at the input': ('bn', 'wider at the input', {}),
    'crop by 2': ('bn', 'first', {'augment': 'flip,pad=2'}),
    'batches of 64': ('bn', 'first', {'batch_size': 64}),
    'weight decay': ('bn', 'first', {'l2': 5e-4}),
    'rate 0.2': ('bn', 'first', {'lr': 0.2}),
    'AdamW': ('bn', 'first', {'optimizer': 'adamw', 'lr': 0.01}),
    'norms behind 1x1': ('bn', 'norms behind 1x1', {}),
    'ln, first, weight decay': ('ln', 'first', {'l2': 5e-4}),
    'ln, norms behind 1x1': ('ln', 'norms behind 1x1', {}),
    'ln, relu first': ('ln', 'relu first', {}),
    'bn, relu first': ('bn', 'relu first', {}),
    'ln, weight decay': ('ln', 'chosen', {'l2': 5e-4}),
    'ln, weight decay, rate 0.2': ('ln', 'chosen', {'l2': 5e-4, 'lr': 0.2}),
    'ln, weight decay, batches of 64': ('ln', 'chosen', {'l2': 5e-4, 'batch_size': 64}),
    'bn, weight decay, batches of 64': ('bn', 'chosen', {'l2': 5e-4, 'batch_size': 64}),
}


def settings(norm: str, **changes: Any) -> dict[str, Any]:
    "Of a separable network. Layer and group norm are faster in float32 there, on a CPU."
    amp = 'bf16' if norm == 'bn' else None
    return {'l2': 5e-4, 'label_smoothing': 0.1, 'lr': 0.2, 'amp': amp} | changes


for norm in ('bn', 'ln', 'gn'):
    # the first trial of each norm came before we knew, so it is in bf16
    TRIALS[f'{norm}, separable, rate 0.2'] = norm, 'separable', settings(norm, amp='bf16')
    for lr in (0.4, 0.1):
        TRIALS[f'{norm}, separable, rate {lr}'] = norm, 'separable', settings(norm, lr=lr)
for norm in ('bn', 'ln'):
    for order in ('relu last', 'norm first', 'two norms'):
        TRIALS[f'{norm}, separable, {order}'] = norm, f'separable, {order}', settings(norm)
    for name, change in (
        ('no smoothing', {'label_smoothing': 0.0}),
        ('crop by 2', {'augment': 'flip,pad=2'}),
    ):
        TRIALS[f'{norm}, separable, {name}'] = norm, 'separable', settings(norm, **change)


def held_out(data: DataSet) -> DataSet:
    "5,000 training images as the test set, the others to train on"
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(123))
    return replace(data, train=data.train[order[5000:]], test=data.train[order[:5000]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='+', help='; '.join(TRIALS))
    parser.add_argument('--data', default='cifar10', help='cifar10, or the path of an image folder')
    parser.add_argument('--out', type=Path, default=OUT, help='the table; one process per --out')
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = held_out(load_data(args.data))
    for name in args.names:
        norm, arch, changes = TRIALS[name]
        config = TrainConfig(
            **{'epochs': 10, 'augment': 'cifar', 'amp': 'bf16', 'device': 'cpu'} | changes
        )
        model = CifarNet(norm, arch=ARCHS[arch], seed=0)
        history: list[dict[str, Any]] = []
        try:
            fit(model, data, config, progress='log', on_epoch=history.append)
        except DivergedError as error:
            print(f'{name}: {error}', flush=True)
        columns = ['epoch', 'train_loss', 'train_acc', 'test_loss', 'test_acc']
        rows = pd.DataFrame(history, columns=columns)
        rows.insert(0, 'trial', name)
        rows.insert(1, 'parameters', count_params(model))
        before = pd.read_csv(args.out) if args.out.exists() else rows[:0]
        both = pd.concat([before[before.trial != name], rows], ignore_index=True)
        write_atomic(args.out, both.to_csv(index=False, float_format='%.5g', lineterminator='\n'))
        print(f'{name}: {len(rows)} epochs are in the table', flush=True)


if __name__ == '__main__':
    main()
