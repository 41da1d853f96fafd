"""Keep what a page of the book needs of a study's folder, and nothing else.

    python benchmarks/store_study.py runs/mnist-norms nbs/results/mnist-norms
    python benchmarks/store_study.py runs/cifar10-norms nbs/results/cifar10-norms \\
        --as-data cifar10 --source 'CIFAR-10, a copy saved as JPEG'

Takes the seeds that every variant has finished, complete or diverged, so that all differences stay
paired. Run it again when more seeds are there. Writes study.json, results.csv, summary.csv,
summary.md, mistakes.npz, and images.npz. The last has the pixels of the test images that pages
draw: the most confident and the first mistakes of each run, and the images that all variants miss.
The data set is looked for in the usual folder ($NORMNOTES_DATA).
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from normnotes.compare.folders import run_folders, write_arrays
from normnotes.core import write_atomic
from normnotes.data import DataSet, load_data
from normnotes.plotting import misclassified, missed_by_all
from normnotes.studies import Results, Variant, write_report


def whole_seeds(results: Results, as_data: str | None) -> Results:
    "The seeds that every variant has finished"
    unfinished = {seed for _, seed in results.missing}
    whole = tuple(seed for seed in results.study.seeds if seed not in unfinished)
    if not whole:
        raise SystemExit(f'no seed is whole yet; missing: {results.missing}')
    return results.only(results.study.replace(seeds=whole, data=as_data or results.study.data))


def drawn_images(kept: Results, data: DataSet, most: int) -> np.ndarray:
    "The numbers of the test images that a page may draw"
    chosen: set[int] = set()
    for evaluation in kept.evaluations.values():
        assert (evaluation.labels == data.test.labels).all(), 'these runs had other test images'
        chosen.update(misclassified(evaluation)[:most])
        chosen.update(misclassified(evaluation, 'index')[:10])
    everyone = {f'{variant} {seed}': e for (variant, seed), e in kept.evaluations.items()}
    able = {
        name: e for name, e in everyone.items() if e.accuracy > 50
    }  # one that always says 0 gets every 0 right
    groups = [
        everyone,
        able,
        *({n: e for n, e in able.items() if n.endswith(f' {s}')} for s in kept.study.seeds),
    ]
    for group in filter(None, groups):
        chosen.update(missed_by_all(group)[:25])
    return np.array(sorted(chosen), dtype=np.int32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', type=Path, help='the folder of the study')
    parser.add_argument(
        'stored', type=Path, help='the folder for the pages, such as nbs/results/NAME'
    )
    parser.add_argument(
        '--most', type=int, default=25, help='most mistakes of a run to keep the pixels of'
    )
    parser.add_argument(
        '--weights', action='store_true', help='the weights of the first whole seed, too'
    )
    parser.add_argument(
        '--last', action='store_true', help='one row per run, its last epoch: for large sweeps'
    )
    parser.add_argument('--as-data', help='the data set that an image folder is a copy of')
    parser.add_argument(
        '--source', help='what the images are, if not what the data set says of itself'
    )
    args = parser.parse_args()

    results = Results.load(args.runs)
    kept = whole_seeds(results, args.as_data)
    if args.last:
        kept.history = kept.history.groupby(['variant', 'seed'], sort=False).tail(1)
    data = results.study.see(load_data(results.study.data))
    made = results.made_with | {'data': args.source or data.source}
    args.stored.mkdir(parents=True, exist_ok=True)
    about = {'study': kept.study.to_dict(), 'made_with': made, 'images': data.checksum}
    write_atomic(args.stored / 'study.json', json.dumps(about, indent=1) + '\n')
    write_report(kept, args.stored, figures=False)
    image = drawn_images(kept, data, args.most)
    arrays = {'image': image, 'pixels': data.test.images[image].numpy()}
    arrays |= {name: np.array(getattr(data, name)) for name in ('classes', 'mean', 'std')}
    write_arrays(args.stored / 'images.npz', arrays)
    if args.weights:
        for run in run_folders(kept.study.replace(seeds=kept.study.seeds[:1]), args.runs):
            if (run.variant, run.seed) in kept.evaluations:
                name = f'{Variant.parse(run.variant).slug}.safetensors'
                shutil.copy(run.path / 'weights.safetensors', args.stored / name)
    print(
        f'{kept.study.name}: seeds {kept.study.seeds} of {results.study.seeds}; {len(image)} images'
    )
    for path in sorted(args.stored.iterdir()):
        print(f'{path.stat().st_size / 1e3:8.1f} kB  {path.name}')


if __name__ == '__main__':
    main()
