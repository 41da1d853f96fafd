"""The book's evidence: what is stored is whole and agrees with itself, and the notebook for everybody runs anywhere."""

import hashlib
import json
import os
import re
import socket
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from normnotes.plotting import missed_by_all, mistakes
from normnotes.studies import COLUMNS, STUDIES, Results, Study, find_studies

ROOT = Path(__file__).resolve().parent.parent
STORED = find_studies(ROOT / 'nbs/results')
NUMBERS = ['epoch', 'train_loss', 'train_acc', 'penalty', 'test_loss', 'test_acc', 'lr', 'seconds']


@pytest.fixture(
    params=STORED, ids=[folder.relative_to(ROOT / 'nbs/results').as_posix() for folder in STORED]
)
def folder(request) -> Path:
    "The stored results of a study."
    return request.param


@pytest.fixture
def results(folder) -> Results:
    return Results.load(folder)


def test_there_is_evidence():
    assert [f.name for f in STORED].count('mnist-norms') == 1


def test_every_variant_has_every_seed_and_every_epoch(results):
    study, history = results.study, results.history
    assert results.missing == []
    assert list(history.columns) == list(COLUMNS)
    for (variant, seed), rows in history.groupby(['variant', 'seed']):
        epochs = study.config(variant, seed).epochs
        if (variant, seed) in results.diverged:
            assert 1 <= len(rows) <= epochs and np.isnan(rows.test_loss.iloc[-1])
        else:
            assert rows.epoch.tolist() == list(range(1, epochs + 1)), (variant, seed)
            assert np.isfinite(rows[NUMBERS].to_numpy()).all(), (variant, seed)
    assert len(history.groupby(['variant', 'seed'])) == len(study.variants) * len(study.seeds)


def test_the_tables_agree_with_each_other(folder, results):
    written = (folder / 'summary.md').read_text(encoding='utf-8')
    assert written == results.to_markdown(), (
        f'write it again: Results.load({str(folder)!r}).write(figures=False)'
    )
    summary = pd.read_csv(folder / 'summary.csv').set_index('variant')
    last = results.history.dropna().groupby(['variant', 'seed']).tail(1)
    means = last[last.epoch == results.study.train.epochs].groupby('variant').test_acc.mean()
    for variant, mean in means.items():
        assert summary.test_acc[variant] == pytest.approx(mean, abs=1e-6), variant


def test_the_mistakes_are_those_that_the_accuracy_counts(results):
    accuracy = results.values()
    runs = {(v, s) for v, s in results.study.runs()} - set(results.diverged)
    assert set(results.evaluations) == runs
    for (variant, seed), evaluation in results.evaluations.items():
        # the history rounds nothing that matters: an image of 10,000 is 0.01 points
        assert evaluation.accuracy == pytest.approx(accuracy.loc[seed, variant], abs=1e-6), (
            variant,
            seed,
        )


def test_the_pixels_of_the_drawn_mistakes_are_stored(folder, results):
    with np.load(folder / 'images.npz') as kept:
        image, pixels = kept['image'], kept['pixels']
    assert pixels.dtype == np.uint8 and len(image) == len(pixels) == len(set(image.tolist()))
    assert (pixels.reshape(len(pixels), -1).max(1) > 0).all()
    stored = set(image.tolist())
    for evaluation in results.evaluations.values():
        assert set(mistakes(evaluation)[:10].tolist()) <= stored
    everyone = {f'{v} {s}': e for (v, s), e in results.evaluations.items() if e.accuracy > 50}
    if everyone:  # where all nets guess, no page asks what all of them miss
        assert set(missed_by_all(everyone)[:25].tolist()) <= stored


def test_the_settings_are_those_of_the_preset(results):
    "So the command on the page repeats what is stored. There may be fewer seeds."
    name = results.study.name
    preset = Study.on(results.study.data) if name == 'compare' else STUDIES[name]
    assert results.study.to_dict() | {'seeds': 0} == preset.to_dict() | {'seeds': 0}
    assert set(results.study.seeds) <= set(preset.seeds)


def test_machine_and_versions_are_told_and_no_path_or_name_of_a_machine(folder):
    made = json.loads((folder / 'study.json').read_text(encoding='utf-8'))['made_with']
    assert {'python', 'torch', 'numpy', 'scipy', 'system', 'machine', 'cpus', 'gpu'} <= set(made)
    for path in folder.rglob('*'):
        if path.suffix in ('.json', '.csv', '.md'):
            text = path.read_text(encoding='utf-8')
            assert not re.search(r'(^|[\s"\'])(/[\w.-]+/|[A-Z]:\\)', text), path.name
            assert socket.gethostname() not in text, path.name


def test_nothing_but_what_pages_need_is_stored(folder):
    names = {'study.json', 'results.csv', 'summary.csv', 'summary.md', 'mistakes.npz', 'images.npz'}
    extra = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()} - names
    by_scripts = {
        'trace.csv',
        'controls.csv',
        'forks.csv',
        'trials.csv',
        'statistics.csv',
    }  # of benchmarks/
    single_runs = {'proximal.csv', 'without.csv'}  # of the commands that their pages give
    assert all(name.endswith('.safetensors') for name in extra - by_scripts - single_runs), extra


def test_the_evidence_is_light():
    files = [p for p in (ROOT / 'nbs/results').rglob('*') if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 5_000_000
    assert all(p.stat().st_size < 1_000_000 for p in files)


# The pages


def code_cells(path: Path) -> list[dict]:
    return [
        c for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code'
    ]


def printed(cell: dict) -> str:
    return ''.join(''.join(o.get('text', [])) for o in cell['outputs'])


PAGES = sorted((ROOT / 'nbs').glob('1[0-9]_*.ipynb'))


def made_from(page: Path) -> dict[str, str]:
    "The files of results that a page says it was made from, with their checksums."
    text = '\n'.join(printed(cell) for cell in code_cells(page))
    return dict(
        re.findall(r'^([\w/@=+.-]+\.(?:csv|npz|safetensors)) ([0-9a-f]{16})$', text, re.MULTILINE)
    )


@pytest.mark.parametrize('page', PAGES, ids=[p.stem for p in PAGES])
def test_the_saved_page_was_made_from_the_stored_files(page):
    "Its outputs name the checksums of what it read; tests in the notebook see to the rest."
    assert made_from(page), f'{page.name} does not print the fingerprints of its results'
    for name, checksum in made_from(page).items():
        stored = hashlib.sha256((ROOT / 'nbs/results' / name).read_bytes()).hexdigest()[:16]
        assert stored == checksum, f'run {page.name} again: its outputs are of another {name}'


def said(cell: dict) -> str:
    "What a cell prints and shows, but for the pictures."
    outputs = [o for o in cell['outputs'] if o.get('name') != 'stderr']
    shown = [o.get('data', {}) for o in outputs]
    texts = [
        data.get('text/markdown', data.get('text/plain', ''))
        for data in shown
        if 'image/png' not in data
    ]
    return ' '.join(
        (printed({'outputs': outputs}) + ' '.join(''.join(text) for text in texts)).split()
    )


@pytest.mark.parametrize('page', PAGES, ids=[p.stem for p in PAGES])
def test_the_saved_page_says_what_its_cells_say_today(page):
    "Word for word, and number for number; in fractions the last digit may differ by two, as processors do."
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    nb = nbformat.read(page, 4)
    where = {'metadata': {'path': str(page.parent)}}
    nbclient.NotebookClient(nb, timeout=600, kernel_name='python3', resources=where).execute()
    number = r'\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?'
    for saved, cell in zip(
        code_cells(page), (c for c in nb.cells if c.cell_type == 'code'), strict=True
    ):
        old, new = said(saved), said(cell)
        assert re.split(number, new) == re.split(number, old), (
            f'run {page.name} again: it says something else today'
        )
        for a, b in zip(re.findall(number, new), re.findall(number, old), strict=True):
            if a != b:
                x, y = (Decimal(n.replace(',', '')) for n in (a, b))
                unit = Decimal(1).scaleb(
                    max(x.as_tuple().exponent, y.as_tuple().exponent)
                )  # of the last digit
                assert unit < 1 and abs(x - y) <= 2 * unit, f'{a} for {b} in:\n' + ''.join(
                    saved['source']
                )


def test_every_stored_study_has_its_page():
    shown = {name.rpartition('/')[0] for page in PAGES for name in made_from(page)}
    stored = {folder.relative_to(ROOT / 'nbs/results').as_posix() for folder in STORED}
    assert stored - shown <= {'compare'}, (
        'the front page shows compare, the pages 10 to 16 the others'
    )


# The notebook for everybody

OFFLINE = """
import builtins, os, socket, sys
imported = builtins.__import__
def no_nbdev(name, *args, **options):
    if name.split('.')[0] in ('nbdev', 'execnb'):
        raise ImportError(f'{name} is not there')
    return imported(name, *args, **options)
def refuse(*args, **options):
    raise OSError('there is no network')
builtins.__import__ = no_nbdev
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""


def script(path: Path) -> str:
    "A notebook's code cells, one after the other, as a plain Python program; Colab's own cells are left out."
    cells = [
        c for c in code_cells(path) if c.get('id') not in ('colab', 'colab-install', 'address')
    ]
    texts = [''.join(c['source']) for c in cells]
    assert not any(re.search(r'^\s*[%!]', text, flags=re.M) for text in texts), (
        'only Jupyter knows % and !'
    )
    return '\n\n'.join(texts)


def test_the_notebook_for_everybody_runs_without_nbdev_network_or_gpu(run_python, tmp_path):
    after = """
assert data_name == 'digits' and 'digits' in why, (data_name, why)
chosen, sentence = choose_data('a GPU of the test')  # a GPU, and no network
assert chosen == 'digits' and sentence.startswith('Found a GPU of the test. '), sentence
print('SENTENCE', why)
print('SENTENCE', sentence)
assert len(results.evaluations) == len(study.runs()) and not results.missing
assert results.values().to_numpy().max() > 20  # guessing is 10
assert not any(name.split('.')[0] in ('nbdev', 'execnb') for name in sys.modules)
print('REACHED THE END')
"""
    program = tmp_path / 'program.py'
    program.write_text(
        OFFLINE + script(ROOT / 'nbs/20_run_it_yourself.ipynb') + after, encoding='utf-8'
    )
    empty = tmp_path / 'empty'
    empty.mkdir()
    env = {
        **os.environ,
        'IN_TEST': '1',  # as under nbdev_test: fewer seeds and epochs, else all the same
        'PYTHONPATH': str(ROOT),
        'NORMNOTES_DATA': str(empty),
        'CUDA_VISIBLE_DEVICES': '',
        'MPLBACKEND': 'agg',
        'OMP_NUM_THREADS': '1',
        'PYTHONIOENCODING': 'utf-8',
    }
    done = run_python(program, cwd=tmp_path, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'REACHED THE END' in done.stdout
    assert 'Traceback' not in done.stderr and 'Warning' not in done.stderr, done.stderr[-3000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'empty',
        'program.py',
    ]  # it leaves nothing behind
