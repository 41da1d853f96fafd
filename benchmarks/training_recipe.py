"""How the learning rates of the training chapter were chosen, and what its recipe reaches.

    python benchmarks/training_recipe.py trials NAME ...    # 8 epochs, 10,000 held-out images
    python benchmarks/training_recipe.py final SEED ...     # the recipe, 20 epochs, test images

Each run is added to nbs/results/training/recipe.json, from which the chapter takes its numbers.
MNIST is found through `--data-dir` or $NORMNOTES_DATA. A run of 20 epochs takes about twelve
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from normnotes.core import write_atomic
from normnotes.data import load_data
from normnotes.models import Net
from normnotes.training import Run, TrainConfig, fit

OUT = Path(__file__).resolve().parent.parent / 'nbs/results/training/recipe.json'
RECIPE = TrainConfig(lr=0.3)  # for batch norm; everything else is the default
TRIALS = {
    f'{norm} {lr}': (norm, lr) for norm in ('bn', 'ln', 'gn') for lr in (0.1, 0.2, 0.3)
}  # norm and highest lr


def record(kind: str, name: str, run: Run, out: Path) -> None:
    "Add a run to the file of results"
    found = json.loads(out.read_text()) if out.exists() else {}
    history = [{key: round(value, 6) for key, value in row.items()} for row in run.history]
    found.setdefault(kind, {})[name] = {
        'config': run.config.to_dict(),
        'history': history,
        'seconds': round(run.seconds, 1),
        'machine': f'{platform.machine()}, {torch.get_num_threads()} thread(s), '
        f'torch {torch.__version__}',
    }
    write_atomic(out, json.dumps(found, indent=1) + '\n')
    last = history[-1]
    print(
        f'{kind} {name}: accuracy {last["test_acc"]:.2f} %, loss {last["test_loss"]:.4f}',
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('kind', choices=('trials', 'final'))
    parser.add_argument('names', nargs='+', help=f'trials: {", ".join(TRIALS)}; final: seeds')
    parser.add_argument('--data-dir', default=None)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument(
        '--out', type=Path, default=OUT, help='the file of results; one process per --out'
    )
    parser.add_argument(
        '--checkpoints', type=Path, default=None, help='a folder: a stopped run goes on from there'
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = load_data('mnist', args.data_dir)
    if args.kind == 'trials':
        data = data.validation(10_000, seed=0)
    for name in args.names:
        if args.kind == 'final':
            norm, config = 'bn', replace(RECIPE, seed=int(name))
        else:
            norm, lr = TRIALS[name]
            config = TrainConfig(epochs=8, lr=lr)
        print(args.kind, name, flush=True)
        checkpoint = (
            args.checkpoints / f'{args.kind}-{name}.safetensors' if args.checkpoints else None
        )
        run = fit(Net(norm, seed=config.seed), data, config, progress='log', checkpoint=checkpoint)
        record(args.kind, name, run, args.out)


if __name__ == '__main__':
    main()
