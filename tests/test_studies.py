"""Studies as a system: killed, shared, damaged, without room, and run again."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from normnotes.compare import folders, running
from normnotes.compare.comparison import RUN_METRICS
from normnotes.compare.folders import read_study, run_folders
from normnotes.compare.reports import to_markdown, write_report
from normnotes.compare.results import Results
from normnotes.compare.running import run_study
from normnotes.studies import Study, StudyError
from normnotes.training import TrainConfig

ROOT = Path(__file__).parents[1]
PACKAGE = str(Path(folders.__file__).parents[2])
QUIET = {'jobs': 1, 'progress': 'none', 'figures': False}
run = partial(run_study, **QUIET)
posix = pytest.mark.skipif(os.name == 'nt', reason='kills processes the POSIX way')


@pytest.fixture(scope='session')
def tiny(pictures):
    "A study of four runs of three epochs on a few pictures."
    train = TrainConfig(epochs=3, batch_size=32, lr=0.1, augment='none')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('NORMNOTES_DATA', str(pictures.parent / 'cache'))
        yield Study('tiny', str(pictures), variants='bn+l1,gn', seeds=2, train=train)


def start(study, out, first='', **options):
    "The same in a process of its own; `first` is Python to run before it."
    code = (
        'import sys, json\n'
        'from normnotes.studies import Study, StudyError, run_study\n'
        f'study, out, options = json.loads(sys.argv[1])\n{first}\n'
        'try: run_study(Study.from_dict(study), out, **options)\n'
        'except StudyError as error: print(error)\n'
    )
    words = json.dumps([study.to_dict(), str(out), QUIET | options])
    command, environment = [sys.executable, '-c', code, words], os.environ | {'PYTHONPATH': PACKAGE}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, env=environment, **pipes)


@pytest.fixture(scope='session')
def undisturbed(tiny, tmp_path_factory):
    "What tiny leaves when nothing happens to it; tests that write take a copy."
    out = tmp_path_factory.mktemp('undisturbed') / 'out'
    run(tiny, out)
    return out


@pytest.fixture
def copy(undisturbed, tmp_path):
    return Path(shutil.copytree(undisturbed, tmp_path / 'copy'))


def wait_for(condition, process=None):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def contents(out):
    "What a study's folder holds, without times: the table, and the bytes of what the runs left."
    table = pd.read_csv(out / 'results.csv').drop(columns='seconds')
    kept = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob('*'))
        if path.suffix in ('.npz', '.safetensors', '.md') or path.name == 'summary.csv'
    }
    return kept | {'results.csv': table.to_csv()}


def stop_after(monkeypatch, epochs):
    "Let training end as by Ctrl-C after so many epochs; the epochs that were trained."
    trained, real = [], running.fit

    def fit(model, data, config, on_epoch, **more):
        def watched(row):
            trained.append(row['epoch'])
            on_epoch(row)
            if len(trained) == epochs:
                raise KeyboardInterrupt

        return real(model, data, config, on_epoch=watched, **more)

    monkeypatch.setattr(running, 'fit', fit)
    return trained


def finished_at(out, name):
    return (out / 'runs' / name / 'status.json').stat().st_mtime_ns


@posix
def test_killed_in_the_middle_and_resumed(tiny, tmp_path, undisturbed):
    out = tmp_path / 'killed'
    held = run_folders(tiny, out)[-1]
    with held.lock():  # nobody trains this run, so the study cannot end before it is killed
        process = start(tiny, out)
        wait_for(lambda: list(out.glob('runs/*/history.csv')), process)
        process.kill()  # SIGKILL: nothing can be tidied up
        process.communicate()
    assert held.status() is None
    assert not run(tiny, out).missing
    assert contents(out) == contents(undisturbed)
    assert not list(out.rglob('runs/*/.*.tmp*'))  # what was half written is gone


@posix
def test_workers_of_a_killed_process_end_and_free_their_locks(tiny, tmp_path):
    study = tiny.replace(epochs=500)
    process = start(study, tmp_path, jobs=2)
    wait_for(lambda: len(list(tmp_path.glob('runs/*/history.csv'))) == 2, process)
    process.kill()
    process.communicate()
    for held in run_folders(study, tmp_path):
        with held.lock(wait=True) as mine:
            assert mine


@pytest.mark.parametrize('damage', ['none', 'empty', 'history'])
def test_a_stopped_run_continues(tiny, tmp_path, damage, undisturbed, monkeypatch):
    "From its checkpoint, from the one before, or from the start; it ends in the same bits."
    out, epochs = tmp_path / 'out', stop_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, out)
    assert (out / 'results.csv').exists()  # a stopped study has tables, too
    assert len(Results.load(out).missing) == 4
    (path,) = out.glob('runs/*/checkpoint.safetensors')
    if damage == 'empty':
        path.write_bytes(b'')
    if damage == 'history':
        path.with_name('history.csv').write_bytes(b'epoch,test_acc\n\xff\x00,much\n')
    run(tiny, out)
    assert damage != 'none' or epochs == [1, 2, 3, *[1, 2, 3] * 3]
    assert contents(out) == contents(undisturbed)


def test_two_processes_on_one_folder(tiny, tmp_path, undisturbed):
    both = [start(tiny, tmp_path / 'out', jobs=1) for _ in range(2)]
    for process in both:
        printed, errors = process.communicate(timeout=600)
        assert (process.returncode, printed) == (0, ''), errors
    assert contents(tmp_path / 'out') == contents(undisturbed)


@pytest.mark.parametrize('backend', ['loky', 'dask'])
def test_jobs_do_not_change_results(tiny, tmp_path, undisturbed, backend):
    if backend == 'loky':
        run(tiny, tmp_path / 'out', jobs=2)
    else:
        distributed = pytest.importorskip('distributed', reason='an extra: normnotes[dask]')
        options = {'n_workers': 1, 'threads_per_worker': 2, 'host': '127.0.0.1'}
        with (
            distributed.LocalCluster(dashboard_address=None, **options) as cluster,
            distributed.Client(cluster),
        ):
            run(tiny, tmp_path / 'out', jobs=None, backend='dask')
    assert contents(tmp_path / 'out') == contents(undisturbed)


def test_seeds_and_variants_are_added_and_nothing_else(tiny, tmp_path):
    run(tiny.replace(seeds=1), tmp_path)
    first = finished_at(tmp_path, 'gn-s0')
    more = run(tiny.replace(seeds=2, variants='gn,ln'), tmp_path)
    assert more.study.variants == ('bn+l1', 'gn', 'ln') and more.study.seeds == (0, 1)
    assert more.missing == [('bn+l1', 1)]  # nobody asked for it
    assert finished_at(tmp_path, 'gn-s0') == first
    with pytest.raises(StudyError, match=r'lr: 0\.1 there, 0\.2 now'):
        run(tiny.replace(lr=0.2), tmp_path)
    (tmp_path / 'study.json').unlink()  # the runs themselves remember
    with pytest.raises(StudyError, match=r'lr: 0\.1 there, 0\.2 now'):
        run(tiny.replace(lr=0.2), tmp_path)


def test_changed_images_are_not_compared_with_the_old_ones(tiny, pictures, tmp_path):
    folder = Path(shutil.copytree(pictures, tmp_path / 'pictures'))
    study = tiny.replace(data=str(folder), variants='bn', seeds=1, epochs=1)
    run(study, tmp_path / 'out')
    for number, path in enumerate(sorted((folder / 'test/3').iterdir())[:3]):
        path.rename(folder / f'test/4/moved{number}.png')
    with pytest.raises(StudyError, match='images'):
        run(study.replace(variants='bn,ln'), tmp_path / 'out')
    assert not run(study.replace(variants='bn,ln'), tmp_path / 'new').missing


def test_a_study_that_continues_elsewhere_says_so(tiny, tmp_path, monkeypatch):
    short = tiny.replace(epochs=1, seeds=1)
    made = run(short, tmp_path).made_with
    monkeypatch.setattr(folders, 'machine', lambda _: made | {'gpu': 'another'})
    assert run(short, tmp_path).made_with == made  # nothing was trained
    more = run(short.replace(seeds=2), tmp_path)
    assert more.made_with == made | {'and': [made | {'gpu': 'another'}]}


def test_a_study_continues_from_its_tables_alone(copy, tiny, undisturbed):
    shutil.rmtree(copy / 'runs')
    whole = Results.load(undisturbed)
    assert to_markdown(Results.load(copy)) == to_markdown(whole)
    pd.testing.assert_frame_equal(Results.load(copy).pairs(), whole.pairs())
    more = tiny.replace(seeds=(*tiny.seeds, 7))
    with pytest.raises(StudyError, match='lr'):
        run_study(more.replace(lr=0.2), copy, progress='none')
    longer = run_study(more, copy, jobs=1, progress='none', figures=False)
    assert {p.name for p in (copy / 'runs').glob('*-s*')} == {'bn+l1-s7', 'gn-s7'}  # no old one
    assert longer.study.seeds == more.seeds and not longer.missing
    pd.testing.assert_frame_equal(longer.only(tiny).history, whole.history)
    assert longer.compare('bn+l1', 'gn').effect.images == whole.compare('bn+l1', 'gn').effect.images
    shutil.rmtree(copy / 'runs')  # and once more, from what that left
    pd.testing.assert_frame_equal(Results.load(copy).history, longer.history)
    (copy / 'mistakes.npz').unlink()
    assert Results.load(copy).compare('bn+l1', 'gn').effect.images == 0
    (copy / 'results.csv').write_text('variant,seed\n?')
    with pytest.raises(StudyError, match='no runs'):
        Results.load(copy)


@pytest.mark.parametrize(
    'name', ['status.json', 'evaluation.npz', 'weights.safetensors', 'history.csv']
)
def test_a_damaged_run_is_trained_again(tiny, copy, undisturbed, name):
    path, table = copy / 'runs/gn-s1' / name, (copy / 'results.csv').read_bytes()
    path.write_bytes(path.read_bytes()[:-7])
    assert Results.load(copy).missing == [('gn', 1)]
    with pytest.raises(StudyError, match='gn seed 1'):  # the table has more than the runs
        write_report(Results.load(copy), figures=False)
    assert (copy / 'results.csv').read_bytes() == table
    run(tiny, copy)
    assert contents(copy) == contents(undisturbed)


def test_damaged_tables_and_study_files_are_rebuilt(tiny, copy, undisturbed):
    for name in ('results.csv', 'summary.csv', 'summary.md', 'mistakes.npz'):
        (copy / name).write_bytes(b'\x00 nonsense')
    (copy / 'study.json').write_text('{"study": {"naem": "x"}}', encoding='utf-8')
    with pytest.raises(StudyError, match=r'naem.*delete it'):
        run(tiny, copy)
    (copy / 'study.json').unlink()
    first = finished_at(copy, 'gn-s0')
    run(tiny, copy)
    assert read_study(copy) == tiny and finished_at(copy, 'gn-s0') == first
    assert contents(copy) == contents(undisturbed)


def test_a_run_that_diverges_is_recorded_and_others_continue(tiny, tmp_path):
    study = tiny.replace(variants='bn@lr=1e30,gn')
    results = run(study, tmp_path)
    assert results.diverged == [('bn@lr=1e30', 0), ('bn@lr=1e30', 1)] and not results.missing
    assert results.values()['gn'].notna().all() and results.pairs().seeds.tolist() == [0]
    before = finished_at(tmp_path, 'bn@lr=1e30-s0')
    run(study, tmp_path)  # and not tried again
    assert finished_at(tmp_path, 'bn@lr=1e30-s0') == before


def test_a_run_that_fails_is_named_and_others_continue(tiny, tmp_path, monkeypatch):
    real, trouble = running.fit, tmp_path / 'runs/bn+l1-s0/error.txt'

    def fit(model, data, config, **more):
        if config.l1 and config.seed == 0:
            raise RuntimeError('out of memory')
        return real(model, data, config, **more)

    monkeypatch.setattr(running, 'fit', fit)
    with pytest.raises(StudyError, match=r'1 of 4 .*bn\+l1 seed 0.*out of memory'):
        run(tiny, tmp_path)
    assert Results.load(tmp_path).missing == [('bn+l1', 0)]
    assert 'Traceback' in trouble.read_text(encoding='utf-8')
    monkeypatch.undo()
    assert not run(tiny, tmp_path).missing and not trouble.exists()


@posix
def test_a_full_disk_is_one_error_and_loses_nothing(tiny, tmp_path, undisturbed):
    run(tiny.replace(seeds=1), tmp_path)
    done = finished_at(tmp_path, 'gn-s0')
    full = 'import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))'
    printed, errors = start(tiny, tmp_path, first=full, jobs=2).communicate(timeout=600)
    assert printed.count('\n') == 1 and str(tmp_path) in printed and 'File too large' in printed, (
        errors
    )
    run(tiny, tmp_path)  # room again
    assert finished_at(tmp_path, 'gn-s0') == done
    assert contents(tmp_path) == contents(undisturbed)


def test_a_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / 'file').write_text('in the way', encoding='utf-8')
    with pytest.raises(StudyError, match='file'):
        run(tiny, tmp_path / 'file' / 'out')


def test_a_number_of_a_run_is_computed_once(undisturbed, monkeypatch):
    "A report asks for the same few numbers again and again."
    calls, real = [], RUN_METRICS['test_acc']

    def compute(rows):
        calls.append(len(rows))
        return real.compute(rows)

    monkeypatch.setitem(RUN_METRICS, 'test_acc', replace(real, compute=compute))
    results = Results.load(undisturbed)
    to_markdown(results)
    results.verdicts()
    assert calls == [3] * 4  # four runs of three epochs


def test_a_stored_run_can_be_repeated(tmp_path, monkeypatch):
    "Sums may round differently elsewhere: 5 of 500 test images may change, and losses by 5 %."
    stored = Results.load(ROOT / 'nbs/results/norm-collapse')
    (one,) = run_folders(stored.study.replace(variants='bn', seeds=1), tmp_path, 'cpu')
    stop_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        running.train_run(one)
    now, then = one.history().iloc[0], stored.runs['bn', 0].iloc[0]
    assert now.lr == pytest.approx(then.lr)
    assert now[['train_loss', 'test_loss']].tolist() == pytest.approx(
        then[['train_loss', 'test_loss']].tolist(), rel=0.05
    )
    assert now.test_acc == pytest.approx(then.test_acc, abs=1)
