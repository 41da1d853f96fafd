"""The book's evidence: what is stored is whole and agrees with itself and with the pages."""

import functools
import hashlib
import json
import os
import re
import socket
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from normnotes.compare.results import unpack_mistakes
from normnotes.plotting import misclassified, missed_by_all
from normnotes.studies import STUDIES, Results, Study, to_markdown

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {path.parent.name: path.parent for path in (ROOT / 'nbs/results').glob('*/study.json')}
AS_PUBLISHED = [
    n for n, p in FOLDERS.items() if 'arms' in json.loads((p / 'study.json').read_bytes())
]
STORED = {name: path for name, path in FOLDERS.items() if name not in AS_PUBLISHED}
PAGES = [
    page
    for page in sorted((ROOT / 'nbs/check').glob('*.ipynb'))
    if page.stem not in ('repair', 'run_it_yourself', 'settings')  # they show no stored numbers
] + [ROOT / 'nbs/compare/design.ipynb']
NUMBERS = ['epoch', 'train_loss', 'train_acc', 'penalty', 'test_loss', 'test_acc', 'lr', 'seconds']

every_study = pytest.mark.parametrize('name', STORED)
every_page = pytest.mark.parametrize('page', PAGES, ids=[page.stem for page in PAGES])


@functools.cache
def load(name: str) -> Results:
    return Results.load(STORED[name])


@every_study
def test_every_variant_has_every_seed_and_every_epoch(name):
    results = load(name)
    assert results.missing == []
    runs = results.history.groupby(['variant', 'seed'])
    assert set(runs.groups) == set(results.study.run_keys())
    for (variant, seed), rows in runs:
        epochs = results.study.config(variant, seed).epochs
        if (variant, seed) in results.diverged:
            assert 1 <= len(rows) <= epochs and np.isnan(rows.test_loss.iloc[-1])
        else:
            every = list(range(1, epochs + 1))
            assert rows.epoch.tolist() in (every, [epochs]), (variant, seed)  # sweeps: the last
            assert np.isfinite(rows[NUMBERS].to_numpy()).all(), (variant, seed)


@every_study
def test_the_tables_agree_with_each_other(name):
    results = load(name)
    written = (STORED[name] / 'summary.md').read_text(encoding='utf-8')
    assert written == to_markdown(results), f'write_report(Results.load({name!r}), figures=False)'
    summary = pd.read_csv(STORED[name] / 'summary.csv').set_index('variant')
    means = results.values().mean().dropna()
    assert summary.test_acc[means.index].to_numpy() == pytest.approx(means.to_numpy(), abs=1e-6)


@every_study
def test_the_stored_predictions_give_the_accuracies_and_have_the_drawn_pixels(name):
    results = load(name)
    assert set(results.evaluations) == set(results.study.run_keys()) - set(results.diverged)
    accuracy = results.values()
    with np.load(STORED[name] / 'images.npz') as kept:
        stored = set(kept['image'].tolist())
        assert len(kept['pixels']) == len(stored) and kept['pixels'].any((1, 2, 3)).all()
    for (variant, seed), evaluation in results.evaluations.items():
        assert evaluation.accuracy == pytest.approx(accuracy.loc[seed, variant], abs=1e-6)
        assert set(misclassified(evaluation)[:10].tolist()) <= stored
    if good := {str(key): e for key, e in results.evaluations.items() if e.accuracy > 50}:
        assert set(missed_by_all(good)[:25].tolist()) <= stored


@every_study
def test_the_settings_are_those_of_the_preset(name):
    "So the command on the page repeats what is stored. There may be fewer seeds."
    study = load(name).study
    preset = Study.for_data(study.data) if study.name == 'compare' else STUDIES[study.name]
    assert study.to_dict() | {'seeds': 0} == preset.to_dict() | {'seeds': 0}
    assert set(study.seeds) <= set(preset.seeds)


@pytest.mark.parametrize('name', AS_PUBLISHED)
def test_runs_as_published_are_whole_and_agree_with_their_predictions(name):
    about = json.loads((FOLDERS[name] / 'study.json').read_bytes())
    runs = pd.read_csv(FOLDERS[name] / 'results.csv').groupby(['variant', 'seed'])
    with np.load(FOLDERS[name] / 'mistakes.npz') as arrays:
        evaluations = unpack_mistakes(dict(arrays))
    seeds = {seed for _, seed in runs.groups}
    assert set(runs.groups) == set(evaluations) == set(product(about['arms'], seeds))
    for run, rows in runs:
        assert rows.epoch.tolist() == list(range(1, about['recipe']['epochs'] + 1))
        assert np.isfinite(rows[NUMBERS].to_numpy()).all()
        assert evaluations[run].accuracy == pytest.approx(rows.test_acc.iloc[-1], abs=1e-6)


@pytest.mark.parametrize('name', FOLDERS)
def test_machine_and_versions_are_named_but_no_path_and_no_host(name):
    made = json.loads((FOLDERS[name] / 'study.json').read_text(encoding='utf-8'))['made_with']
    assert {'python', 'torch', 'numpy', 'scipy', 'system', 'machine', 'cpus', 'gpu'} <= set(made)
    for path in FOLDERS[name].rglob('*'):
        if path.suffix in ('.json', '.csv', '.md'):
            text = path.read_text(encoding='utf-8')
            assert not re.search(r'(^|[\s"\'])(/[\w.-]+/|[A-Z]:\\)', text), path.name
            assert socket.gethostname() not in text, path.name


def test_the_evidence_is_light():
    sizes = [p.stat().st_size for p in (ROOT / 'nbs/results').rglob('*') if p.is_file()]
    assert sum(sizes) < 8_000_000 and max(sizes) < 1_000_000


def code_cells(page: Path) -> list[dict]:
    cells = json.loads(page.read_text(encoding='utf-8'))['cells']
    return [cell for cell in cells if cell['cell_type'] == 'code']


def made_from(page: Path) -> dict[str, str]:
    "The files of results that a page says it was made from, with their checksums."
    printed = [''.join(o.get('text', [])) for c in code_cells(page) for o in c['outputs']]
    pattern = r'^([\w/@=+.-]+\.(?:csv|npz|safetensors)) ([0-9a-f]{16})$'
    return dict(re.findall(pattern, '\n'.join(printed), re.MULTILINE))


@every_page
def test_the_saved_page_was_made_from_the_stored_files(page):
    named = made_from(page)
    assert named, f'{page.name} does not print the fingerprints of its results'
    for name, checksum in named.items():
        stored = hashlib.sha256((ROOT / 'nbs/results' / name).read_bytes()).hexdigest()[:16]
        assert stored == checksum, f'run {page.name} again: its outputs are of another {name}'
    code = '\n'.join(''.join(cell['source']) for cell in code_cells(page))
    read = set(re.findall(r"'\.\./results/([^']+)'", code))
    assert [p for p in read if not any(name.startswith(p) for name in named)] == []


def test_every_stored_study_has_its_page():
    shown = {name.partition('/')[0] for page in PAGES for name in made_from(page)}
    assert set(FOLDERS) - shown <= {'compare'}, 'the front page shows compare, the pages the others'


# Numbers on the pages, computed once more from the bare tables


def last(study: str, metric: str = 'test_acc') -> pd.DataFrame:
    "A column of results.csv in the last epoch of each run: a row per seed, a column per variant."
    table = pd.read_csv(ROOT / 'nbs/results' / study / 'results.csv')
    table = table.sort_values('epoch').groupby(['variant', 'seed'])[metric].last()
    return table.unstack('variant')


def norm_buys() -> list[str]:
    runs = last('digits-rate').fillna(0)
    learned = {v: int((runs[f'{v}@lr=0.3'] >= 50).sum()) for v in ('none+he', 'ln', 'rms')}
    best = {v: max(runs[c].mean() for c in runs if c.startswith(f'{v}@')) for v in ('bn', 'none')}
    return [
        f'{learned["none+he"]} of 20 learn without a norm, {learned["ln"]} with layer norm',
        f'{best["bn"]:.1f} %',
        f'{best["none"]:.1f} with the usual ones',
    ]


def mnist() -> list[str]:
    means = last('mnist-own-rate').mean()
    return [f'between {means.min():.2f} and {means.max():.2f} %']


def seeds_matter() -> list[str]:
    sd = last('mnist-norms').std()
    return [f'{sd[v]:.3f}' for v in ('bn+l1', 'ln', 'gn', 'bn')]


def penalties() -> list[str]:
    m = last('mnist-penalties').mean()
    l2 = (m['bn+l2'] + m['bn+l1+l2'] - m['bn'] - m['bn+l1']) / 2
    return [f'between {m.min():.2f} and {m.max():.2f} %', f'L2 by {l2:.2f}']


def cifar() -> list[str]:
    test, train = (last('cifar10-norms', m).mean() for m in ('test_acc', 'train_acc'))
    return [f'Batch norm reaches {test["bn+l2"]:.2f} %', f'{train["bn+l2"]:.1f}']


def collapse() -> list[str]:
    runs = last('norm-collapse')
    low = {
        n: int((runs.filter(regex=f'^{n}(@|$)') < 20).to_numpy().sum()) for n in ('ln', 'bn', 'gn')
    }
    return [f'{low["ln"]} of 40 networks with layer norm', f'and {low["bn"] + low["gn"]} of 80']


def l1_strength() -> list[str]:
    m = last('l1-strength').mean()
    return [
        f'lost {m["bn+l1=0"] - m["bn+l1=1e-3"]:.2f} points',
        f'left with {m["bn+l1=0.05"]:.0f} %',
    ]


def small_batches() -> list[str]:
    error = 100 - last('batch-size').mean()
    bn, gn = (error.filter(regex=f'^{norm}@batch_size=2@').item() for norm in ('bn', 'gn'))
    alone = 100 - last('ghost-batch').mean()
    return [
        f'ends at {bn:.2f} % and group norm at {gn:.2f} %',
        f'error is {alone["bn@ghost=2"]:.2f} % in place of {alone["bn"]:.2f} %',
    ]


def five_notebooks() -> list[str]:
    table = pd.read_csv(ROOT / 'nbs/results/era-as-published/results.csv').query('epoch > 1')
    loss, penalty = table.train_loss.mean(), table.penalty.mean()
    return [f'{loss:.2f} and the penalty {penalty:.2f}', f'in all {loss + penalty:.2f}']


def claims() -> list[str]:
    m = last('mnist-norms-eva6').mean()
    return [f'`gn - ln`: {m["gn"] - m["ln"]:.2f}', f'`bn+l1 - ln`: {m["bn+l1"] - m["ln"]:.2f}']


@pytest.mark.parametrize(
    'page, compute',
    [
        ('what_a_norm_buys', norm_buys),
        ('mnist_norms', mnist),
        ('seeds_matter', seeds_matter),
        ('mnist_penalties', penalties),
        ('cifar10_norms', cifar),
        ('norm_collapse', collapse),
        ('l1_strength', l1_strength),
        ('batch_size', small_batches),
        ('five_notebooks', five_notebooks),
        ('claims', claims),
    ],
)
def test_numbers_of_the_page_come_out_again_from_the_bare_tables(page, compute):
    shown = [
        o.get('data', {})
        for c in code_cells(ROOT / f'nbs/check/{page}.ipynb')
        for o in c['outputs']
    ]
    text = ' '.join(
        ''.join(d.get(kind, '')) for d in shown for kind in ('text/markdown', 'text/plain')
    )
    text = ' '.join(text.replace('\N{MINUS SIGN}', '-').split())
    assert [number for number in compute() if number not in text] == []


OFFLINE = """
import socket, sys
sys.modules['nbdev'] = sys.modules['execnb'] = None  # an import fails
def refuse(*args, **options):
    raise OSError('there is no network')
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


def test_the_notebook_for_everybody_runs_without_nbdev_network_or_gpu(run_python, tmp_path):
    page = ROOT / 'nbs/check/run_it_yourself.ipynb'
    own = ('colab', 'address')  # Colab's own cells
    cells = [''.join(c['source']) for c in code_cells(page) if c['id'] not in own]
    end = 'assert data_name == "digits" and results.values().to_numpy().max() > 20; print("END")'
    program = tmp_path / 'program.py'
    program.write_text('\n\n'.join([OFFLINE, *cells, end]), encoding='utf-8')
    env = {**os.environ, 'IN_TEST': '1', 'CUDA_VISIBLE_DEVICES': '', 'PYTHONPATH': str(ROOT)}
    env |= {'NORMNOTES_DATA': str(tmp_path / 'data'), 'PYTHONIOENCODING': 'utf-8'}
    done = run_python(program, cwd=tmp_path, env=env, timeout=600)
    assert done.returncode == 0 and 'END' in done.stdout, done.stderr[-3000:]
    assert 'Warning' not in done.stderr, done.stderr[-3000:]
