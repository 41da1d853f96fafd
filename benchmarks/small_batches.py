"""Test the batch-norm networks of the study `batch-size` with other statistics than their own.

    normnotes study batch-size --out runs/batch-size
    python benchmarks/store_study.py runs/batch-size nbs/results/batch-size --most 10
    python benchmarks/small_batches.py runs/batch-size

For each network of a stored seed: its test accuracy with its running statistics, with statistics
of all training images, and with those of each batch of test images (as many images as in training,
and two). Writes statistics.csv beside the results of the study. Takes about ten minutes on a CPU.
The data set is looked for in the usual folder ($NORMNOTES_DATA).
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from normnotes.batches import Batches
from normnotes.compare.folders import run_folders
from normnotes.core import write_atomic
from normnotes.data import DataSet, load_data
from normnotes.evaluation import evaluate
from normnotes.models import load_model
from normnotes.studies import Results, Variant
from normnotes.surgery import recompute_stats

OUT = Path(__file__).resolve().parent.parent / 'nbs/results/batch-size'


def in_company(model: nn.Module, data: DataSet, size: int) -> float:
    "The test accuracy in percent when each batch of test images has its own statistics."
    model, right = deepcopy(model).eval(), 0
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    with torch.no_grad():
        for x, y in Batches(data.test, size, data.mean, data.std).epoch(1):
            right += int((model(x).argmax(1) == y).sum())
    return 100 * right / len(data.test)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', type=Path, help='the folder of the study')
    args = parser.parse_args()

    study, rows = Results.load(OUT).study, []
    data = load_data(study.data)
    for run in run_folders(study, args.runs):
        config = run.config
        if Variant.parse(run.variant).norm != 'bn':
            continue
        model = load_model(run.path / 'weights.safetensors')
        training = Batches(data.train, 1000, data.mean, data.std, config.augment).epoch(1)
        company = {size: in_company(model, data, size) for size in {config.batch_size, 2}}
        row = {
            'batch_size': config.batch_size,
            'seed': run.seed,
            'running': evaluate(model, data).accuracy,
            'recomputed': evaluate(recompute_stats(deepcopy(model), training), data).accuracy,
            'company': company[config.batch_size],
            'pairs': company[2],
        }
        rows.append(row)
        print(', '.join(f'{name} {value:g}' for name, value in row.items()), flush=True)
    table = pd.DataFrame(rows).sort_values(['batch_size', 'seed'])
    write_atomic(
        OUT / 'statistics.csv', table.to_csv(index=False, float_format='%.6g', lineterminator='\n')
    )


if __name__ == '__main__':
    main()
