"""How the default recipe of `TrainConfig` was chosen and measured, on MNIST.

    python benchmarks/training_recipe.py trials NAME ...    # on 10,000 held-out images; the test images stay unseen
    python benchmarks/training_recipe.py final SEED ...     # the defaults, 20 epochs, on the test images

Each run is added to nbs/results/training/recipe.json, from which chapter 4 takes its numbers.
MNIST is found through `--data-dir` or $NORMNOTES_DATA. A run of 20 epochs takes 6 to 15 minutes on one core.
"""
from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch

from normnotes.data import Augment, load_data, write_atomic
from normnotes.models import Net
from normnotes.training import Run, TrainConfig, fit

OUT = Path(__file__).resolve().parent.parent / 'nbs/results/training/recipe.json'
BASE = TrainConfig(epochs=8, batch_size=128, lr=0.1, augment='light', amp='auto')
TRIALS: dict[str, dict[str, Any]] = {  # each differs from BASE in what is named
    'lr 0.1': {},
    'lr 0.3': {'lr': 0.3},
    'lr 0.1, batch 64': {'batch_size': 64},
    'lr 0.2, batch 64': {'lr': 0.2, 'batch_size': 64},
    'lr 0.3, gentle': {'lr': 0.3, 'augment': Augment(rotate=7, shift=1, scale=.05)},
    'lr 0.2, batch 64, gentle': {'lr': 0.2, 'batch_size': 64, 'augment': Augment(rotate=7, shift=1, scale=.05)},
    'adamw': {'optimizer': 'adamw', 'lr': 0.01, 'l2': 0.01},
}


def record(kind: str, name: str, run: Run, out: Path) -> None:
    "Add a run to the file of results"
    found = json.loads(out.read_text()) if out.exists() else {}
    history = [{key: round(value, 6) for key, value in row.items()} for row in run.history]
    found.setdefault(kind, {})[name] = {
        'config': run.config.to_dict(), 'history': history, 'seconds': round(run.seconds, 1),
        'machine': f'{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}'}
    write_atomic(out, json.dumps(found, indent=1) + '\n')
    last = history[-1]
    print(f'{kind} {name}: accuracy {last["test_acc"]:.2f} %, loss {last["test_loss"]:.4f}', flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('kind', choices=('trials', 'final'))
    parser.add_argument('names', nargs='+', help=f'trials: {", ".join(TRIALS)}; final: seeds')
    parser.add_argument('--data-dir', default=None)
    parser.add_argument('--epochs', type=int, default=None)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--amp', choices=('none', 'bf16', 'auto'), default='auto')
    parser.add_argument('--out', type=Path, default=OUT)
    parser.add_argument('--checkpoints', type=Path, default=None, help='a folder: a stopped run goes on from there')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_data('mnist', args.data_dir)
    if args.kind == 'trials':
        data = data.validation(10_000, seed=0)
    amp = None if args.amp == 'none' else args.amp
    for name in args.names:
        seed = int(name) if args.kind == 'final' else 0
        settings = {'seed': seed} if args.kind == 'final' else {**BASE.to_dict(), **TRIALS[name]}
        if args.epochs:
            settings['epochs'] = args.epochs
        config = TrainConfig.from_dict({**settings, 'amp': amp})
        print(args.kind, name, flush=True)
        checkpoint = args.checkpoints/f'{args.kind}-{name}.safetensors' if args.checkpoints else None
        run = fit(Net('bn', seed=seed), data, config, progress='log', checkpoint=checkpoint)
        record(args.kind, name, run, args.out)


if __name__ == '__main__':
    main()
