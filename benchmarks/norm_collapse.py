"""What the inputs of norms are made of while a network learns, and which other norms collapse.

    python benchmarks/norm_collapse.py trace      # step by step, one seed: trace.csv
    python benchmarks/norm_collapse.py controls   # ten seeds of each norm: controls.csv
    python benchmarks/norm_collapse.py forks      # from epoch three on, in ten orders: forks.csv

Uses the embedded digits and the settings of the study `norm-collapse`, and writes its tables
beside that study's results. The trace and the forks take a minute each, the controls ten.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normnotes.batches import Batches
from normnotes.core import seed_generator, write_atomic
from normnotes.data import DataSet, load_data
from normnotes.evaluation import evaluate
from normnotes.inside import variance_parts
from normnotes.models import Net
from normnotes.studies import STUDIES
from normnotes.training import TrainConfig, fit, learning_rate, make_optimizer

OUT = Path(__file__).resolve().parent.parent / 'nbs/results/norm-collapse'
STUDY = STUDIES['norm-collapse']


class _Running(nn.Module):
    "A number per channel: of the batch in training, of a running average afterwards."

    def __init__(self, num_channels: int, start: float):
        super().__init__()
        self.running: Tensor
        self.register_buffer('running', torch.full((num_channels,), start))

    def average(self, of_batch: Tensor) -> Tensor:  # (C,)
        if self.training:
            self.running.lerp_(of_batch.detach(), 0.1)
        return (of_batch if self.training else self.running)[:, None, None]


class CentredLayerNorm(_Running):
    "Layer norm of what is left when the mean of each channel over the batch has been taken away"

    def __init__(self, num_channels: int):
        super().__init__(num_channels, 0.0)
        self.norm = nn.GroupNorm(1, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x - self.average(x.mean((0, 2, 3))))


class UncentredBatchNorm(_Running):
    "Batch norm that divides by the root mean square of a channel and does not take its mean away"

    def __init__(self, num_channels: int):
        super().__init__(num_channels, 1.0)
        self.weight, self.bias = (
            nn.Parameter(torch.ones(num_channels)),
            nn.Parameter(torch.zeros(num_channels)),
        )

    def forward(self, x: Tensor) -> Tensor:
        square = self.average(x.square().mean((0, 2, 3)))
        return x * (square + 1e-5).rsqrt() * self.weight[:, None, None] + self.bias[:, None, None]


NORMS: dict[str, str | Callable[[int], nn.Module]] = {
    'bn': 'bn',
    'ln': 'ln',
    'ln, channels centred': CentredLayerNorm,
    'bn, not centred': UncentredBatchNorm,
}


def trace(norm: str, seed: int, steps: int) -> list[dict]:
    "The parts of every norm's input in every second of the first training steps"
    model, rows, step = Net(NORMS[norm], seed=seed), [], 0

    def watch(layer: int) -> Callable[[nn.Module, tuple], None]:
        def look(module: nn.Module, inputs: tuple) -> None:
            if module.training and step < steps and step % 2 == 0:
                rows.append(
                    {'norm': norm, 'step': step, 'layer': layer} | variance_parts(inputs[0])
                )

        return look

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal step
        step += module.training

    norms = [block.norm for block in model.children() if hasattr(block, 'norm')]
    for layer, module in enumerate(norms, 1):
        module.register_forward_pre_hook(watch(layer))
    model.register_forward_hook(count)
    config = STUDY.config('ln', seed, device='cpu')
    batches = -(-len(load_data('digits').train.labels) // config.batch_size)

    class Enough(Exception):
        pass

    def stop(row: dict) -> None:
        if row['epoch'] * batches >= steps:
            raise Enough

    try:
        fit(model, load_data('digits'), config, progress='none', on_epoch=stop)
    except Enough:
        pass
    return rows


def control(norm: str, seed: int) -> dict:
    "The last accuracy of a whole run"
    config = STUDY.config('ln', seed, device='cpu')
    run = fit(Net(NORMS[norm], seed=seed), load_data('digits'), config, progress='none')
    return {'norm': norm, 'seed': seed, 'test_acc': round(run.evaluation.accuracy, 2)}


@dataclass
class Walker:
    "A net on its way, with its optimizer"

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: DataSet
    config: TrainConfig


def walk(walker: Walker, epochs: range) -> dict:
    "Train some epochs: highest loss of a batch, longest step, accuracy afterwards."
    model, config, data = walker.model, walker.config, walker.data
    batches = Batches(
        data.train, config.batch_size, data.mean, data.std, config.augment, config.seed
    )
    weights, losses, lengths = list(model.parameters()), [], []
    for epoch in epochs:
        torch.manual_seed(seed_generator(config.seed, 'dropout', epoch).initial_seed())
        model.train()
        for step, (x, y) in enumerate(batches.epoch(epoch), (epoch - 1) * len(batches)):
            for group in walker.optimizer.param_groups:
                group['lr'] = learning_rate(config, step, len(batches))
            loss = F.cross_entropy(model(x), y)
            walker.optimizer.zero_grad()
            loss.backward()
            before = torch.cat([w.detach().flatten() for w in weights])
            walker.optimizer.step()
            after = torch.cat([w.detach().flatten() for w in weights])
            losses.append(loss.item())
            lengths.append(((after - before).norm() / before.norm()).item())
    return {'loss': max(losses), 'step': max(lengths), 'test_acc': evaluate(model, data).accuracy}


def forks(seed: int) -> list[dict]:
    "Layer norm for three epochs, then two more in ten orders: plain, centred, at half the rate."

    def start(norm: str, order: int, variant: str = 'ln') -> Walker:
        config = STUDY.config(variant, order, device='cpu')
        # as `fit` keeps images on the CPU
        model = Net(NORMS[norm], seed=seed).to(memory_format=torch.channels_last)
        return Walker(model, make_optimizer(model, config), load_data('digits'), config)

    rows, first = [], start('ln', seed)
    walk(first, range(1, 4))
    weights, momentum = list(first.model.state_dict().values()), first.optimizer.state_dict()
    centred, slow = 'ln, channels centred', 'ln, half the rate'
    for name, norm, variant in (
        ('ln', 'ln', 'ln'),
        (centred, centred, 'ln'),
        (slow, 'ln', 'ln@lr=0.05'),
    ):
        for order in range(1, 11):
            fork = start(norm, order, variant)
            own = [
                key for key in fork.model.state_dict() if not key.endswith('running')
            ]  # that fills as it goes
            fork.model.load_state_dict(dict(zip(own, weights, strict=True)), strict=False)
            fork.optimizer.load_state_dict(copy.deepcopy(momentum))
            rows.append({'norm': name, 'order': order} | walk(fork, range(4, 6)))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=('trace', 'controls', 'forks'))
    parser.add_argument('--seed', type=int, default=1, help='of the trace and the forks')
    parser.add_argument('--steps', type=int, default=216, help='of the trace')
    parser.add_argument('--out', type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict] = []
    if args.what == 'trace':
        for norm in ('ln', 'bn'):
            rows += trace(norm, args.seed, args.steps)
    elif args.what == 'forks':
        rows = forks(args.seed)
    else:
        for norm in list(NORMS)[2:]:
            for seed in STUDY.seeds:
                rows.append(control(norm, seed))
                print(rows[-1], flush=True)
    text = pd.DataFrame(rows).to_csv(index=False, float_format='%.4g', lineterminator='\n')
    write_atomic(args.out / f'{args.what}.csv', text)


if __name__ == '__main__':
    main()
