"""Studies as a system: killed, shared, damaged, without room; and their statistics by simulation."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from normnotes import studies
from normnotes.studies import (
    Comparison,
    Results,
    Study,
    StudyError,
    Variant,
    lock,
    mcnemar,
    read_study,
    run_study,
)
from normnotes.training import Evaluation, TrainConfig

ENV = {
    **os.environ,
    'PYTHONPATH': str(Path(studies.__file__).parents[1]),
}  # the same package as in this process
posix = pytest.mark.skipif(os.name == 'nt', reason='kills processes the POSIX way')


@pytest.fixture(scope='session')
def tiny(pictures):
    """A study of four runs of three epochs on it."""
    train = TrainConfig(epochs=3, batch_size=32, lr=0.1, augment='none')
    return Study('tiny', str(pictures), variants='bn+l1,gn', seeds=2, train=train)


@pytest.fixture(scope='session')
def run(pictures):
    """run_study in this process, quietly, with data cached beside the pictures."""

    def run(study, out, **options):
        options = {
            'jobs': 1,
            'progress': 'none',
            'figures': False,
            'root': pictures.parent / 'cache',
            **options,
        }
        return run_study(study, out, **options)

    return run


def start(study, out, pictures, **options):
    """run_study in a process of its own."""
    code = (
        'import sys, json\n'
        'from normnotes.studies import Study, run_study\n'
        'study, out, root, options = json.loads(sys.argv[1])\n'
        'run_study(Study.from_dict(study), out, root=root, figures=False, **options)\n'
    )
    words = json.dumps(
        [study.to_dict(), str(out), str(pictures.parent / 'cache'), {'progress': 'none', **options}]
    )
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen([sys.executable, '-c', code, words], env=ENV, **pipes)


def wait_for(condition, seconds=120, process=None):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def contents(out):
    """What a study's folder holds, without times: the tables, and the bytes of what the runs left."""
    table = pd.read_csv(out / 'results.csv').drop(columns='seconds')
    kept = {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob('*'))
        if path.suffix in ('.npz', '.safetensors', '.md') or path.name == 'summary.csv'
    }
    return table.to_csv(), kept


def assert_same(one, two):
    (table, files), (other_table, other_files) = contents(one), contents(two)
    assert table == other_table
    assert files.keys() == other_files.keys()
    for name in files:
        assert files[name] == other_files[name], name


@pytest.fixture(scope='session')
def undisturbed(tiny, run, tmp_path_factory):
    """What tiny leaves when nothing happens to it; tests that write take a copy."""
    out = tmp_path_factory.mktemp('undisturbed') / 'out'
    run(tiny, out)
    return out


# Killed, and resumed


@posix
@pytest.mark.parametrize('jobs', [1, 2])
def test_killed_in_the_middle_and_resumed(tiny, run, pictures, tmp_path, jobs, undisturbed):
    out = tmp_path / 'killed'
    with lock(
        out / 'runs' / 'gn-s1' / 'lock'
    ):  # nobody trains this run, so the study cannot end before it is killed
        process = start(tiny, out, pictures, jobs=jobs)
        wait_for(lambda: list(out.glob('runs/*/history.csv')), process=process)
        process.kill()  # SIGKILL: nothing can be tidied up
        process.communicate()
    assert len(list(out.glob('runs/*/status.json'))) < 4
    again = run(tiny, out)
    assert not again.missing
    assert_same(out, undisturbed)
    assert not list(out.rglob('runs/*/.*.tmp*'))  # what a kill left half written is gone


@posix
def test_workers_of_a_killed_process_end(tiny, pictures, tmp_path):
    study = tiny.change(epochs=500)
    process = start(study, tmp_path / 'out', pictures, jobs=2)
    wait_for(lambda: len(list(tmp_path.glob('out/runs/*/history.csv'))) == 2, process=process)
    process.kill()
    process.communicate()
    locks = list(tmp_path.glob('out/runs/*/lock'))

    def all_free():
        for path in locks:
            with lock(path) as held:
                if not held:
                    return False
        return True

    wait_for(all_free, seconds=60)


def test_a_checkpoint_is_gone_on_from(tiny, run, tmp_path, monkeypatch, undisturbed):
    """Stopped by an error after the first epoch, a run does not start anew."""
    epochs, real = [], studies.fit

    def fit(model, data, config, on_epoch, **more):
        def watched(row):
            epochs.append(row['epoch'])
            on_epoch(row)
            if len(epochs) == 1:
                raise KeyboardInterrupt

        return real(model, data, config, on_epoch=watched, **more)

    monkeypatch.setattr(studies, 'fit', fit)
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        run(tiny, out)
    assert (out / 'results.csv').exists()  # also a stopped study has tables
    assert len(read_study(out).runs()) == len(Results.load(out).missing) == 4
    run(tiny, out)
    assert epochs == [1, 2, 3, *[1, 2, 3] * 3]
    assert_same(out, undisturbed)


# Shared


def test_two_processes_on_one_folder(tiny, pictures, tmp_path, undisturbed):
    out = tmp_path / 'shared'
    both = [start(tiny, out, pictures, jobs=1) for _ in range(2)]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert_same(out, undisturbed)


def test_a_lock_is_free_when_its_holder_is_killed(tmp_path):
    code = (
        'import sys, time; from normnotes.studies import lock\n'
        'with lock(sys.argv[1]) as held: print(held, flush=True); time.sleep(600)'
    )
    path = tmp_path / 'lock'
    process = subprocess.Popen(
        [sys.executable, '-c', code, str(path)], stdout=subprocess.PIPE, text=True, env=ENV
    )
    assert process.stdout.readline().strip() == 'True'
    with lock(path) as held:
        assert not held
    process.kill()
    process.wait()
    with lock(path, wait=True) as held:
        assert held
    process.stdout.close()


def test_a_run_held_elsewhere_is_waited_for(tiny, run, tmp_path, undisturbed):
    import threading

    out = tmp_path / 'out'
    held, free = threading.Event(), threading.Event()

    def hold():
        with lock(out / 'runs/gn-s0/lock'):
            held.set()
            free.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(3, free.set).start()
    results = run(tiny, out)
    thread.join()
    assert not results.missing
    assert_same(out, undisturbed)


def test_seeds_and_variants_are_added_and_nothing_else(tiny, run, tmp_path):
    out = tmp_path / 'out'
    run(tiny.change(seeds=1), out)
    first = (out / 'runs/gn-s0/status.json').stat().st_mtime_ns
    more = run(tiny.change(seeds=2, variants='gn,ln'), out)
    assert more.study.variants == ('bn+l1', 'gn', 'ln') and more.study.seeds == (0, 1)
    assert more.missing == [('bn+l1', 1)]  # not asked for
    assert (out / 'runs/gn-s0/status.json').stat().st_mtime_ns == first
    with pytest.raises(StudyError, match=r'train\.lr: 0\.1 there, 0\.2 now'):
        run(tiny.change(lr=0.2), out)
    (out / 'study.json').unlink()  # the runs themselves remember
    with pytest.raises(StudyError, match=r'config\.lr: 0\.1 there, 0\.2 now'):
        run(tiny.change(lr=0.2), out)


def test_changed_images_are_not_compared_with_the_old_ones(pictures, tmp_path):
    folder, cache = tmp_path / 'pictures', tmp_path / 'cache'
    shutil.copytree(pictures, folder)
    train = TrainConfig(epochs=1, batch_size=64, augment='none')
    study = Study('changing', str(folder), variants='bn', seeds=1, train=train)
    options = {'jobs': 1, 'progress': 'none', 'figures': False, 'root': cache}
    run_study(study, tmp_path / 'out', **options)
    for number, path in enumerate(sorted((folder / 'test/3').iterdir())[:3]):
        path.rename(folder / f'test/4/moved{number}.png')
    with pytest.raises(
        StudyError, match=r'the images of .* are not those that .*bn-s0 was trained on'
    ):
        run_study(study.change(variants='bn,ln'), tmp_path / 'out', **options)
    assert not run_study(study.change(variants='bn,ln'), tmp_path / 'new', **options).missing


def test_a_study_that_goes_on_elsewhere_says_so(tiny, run, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    run(tiny.change(seeds=1, epochs=1), out)
    made = json.loads((out / 'study.json').read_text())['made_with']
    monkeypatch.setattr(studies, '_machine', lambda _: made | {'gpu': 'another'})
    run(tiny.change(seeds=1, epochs=1), out)  # nothing is trained
    assert json.loads((out / 'study.json').read_text())['made_with'] == made
    results = run(tiny.change(seeds=2, epochs=1), out)
    assert results.made_with == made | {'and': [made | {'gpu': 'another'}]}
    assert results.told.endswith('Some were trained on another machine, or with other versions.')
    assert re.search(r' nets take \d+ (seconds|minutes)\. Some were', results.told)


def test_reports_find_studies_wherever_they_are(tiny, run, tmp_path, undisturbed):
    shutil.copytree(undisturbed, tmp_path / 'runs/compare')
    assert studies.find_studies(tmp_path) == [tmp_path / 'runs/compare']
    shutil.rmtree(tmp_path / 'runs/compare/runs')
    for damage in (b'', b'no zip'):
        (tmp_path / 'runs/compare/mistakes.npz').write_bytes(damage)
        with pytest.raises(StudyError, match='compare cannot be read'):
            Results.load(tmp_path / 'runs/compare')


# Side by side


@pytest.mark.parametrize('backend', ['loky', 'threading'])
def test_jobs_do_not_change_results(tiny, run, tmp_path, undisturbed, backend):
    run(
        tiny, tmp_path / 'out', jobs=2, backend=backend
    )  # threads, which share torch's generator, take turns
    assert_same(tmp_path / 'out', undisturbed)


@pytest.mark.skipif(
    not importlib.util.find_spec('distributed'), reason='dask is an optional extra: normnotes[dask]'
)
def test_dask(tiny, run, tmp_path, undisturbed):
    from distributed import Client, LocalCluster

    options = {
        'n_workers': 2,
        'threads_per_worker': 1,
        'dashboard_address': None,
        'host': '127.0.0.1',
    }
    with LocalCluster(**options) as cluster, Client(cluster):
        run(tiny, tmp_path / 'out', jobs=None, backend='dask')
    assert_same(tmp_path / 'out', undisturbed)


@pytest.mark.skipif(not importlib.util.find_spec('ray'), reason='Ray is not installed')
def test_ray(tiny, run, tmp_path, undisturbed):
    import ray

    ray.init(num_cpus=2, include_dashboard=False)
    try:
        run(tiny, tmp_path / 'out', jobs=None, backend='ray')
    finally:
        ray.shutdown()
    assert_same(tmp_path / 'out', undisturbed)


# Pictures


def test_pictures_do_not_depend_on_the_readers_style(undisturbed, pictures, tmp_path):
    import matplotlib as mpl
    from matplotlib import style
    from PIL import Image

    from normnotes.data import load_data

    results, data = Results.load(undisturbed), load_data(pictures, pictures.parent / 'cache')
    results.write(tmp_path / 'plain', data)
    with mpl.rc_context():
        style.use(['dark_background', {'font.size': 20, 'axes.grid': True}])
        chosen = dict(mpl.rcParams)
        results.write(tmp_path / 'dark', data)
        assert dict(mpl.rcParams) == chosen  # and the reader's own figures stay as they were
    names = {'loss.png', 'accuracy.png', 'misclassified_bn+l1.png', 'misclassified_gn.png'}
    for name in names | {'results.csv', 'summary.csv', 'summary.md', 'mistakes.npz'}:
        assert (tmp_path / 'plain' / name).read_bytes() == (
            tmp_path / 'dark' / name
        ).read_bytes(), name
    for name in names:
        assert Image.open(tmp_path / 'dark' / name).convert('RGB').getpixel((0, 0)) == (
            255,
            255,
            255,
        )


@pytest.fixture
def finished_mnist(undisturbed, tmp_path, monkeypatch):
    """A finished study whose images would have to be downloaded, on a machine without a network."""
    out = tmp_path / 'out'
    shutil.copytree(undisturbed, out)
    for path in [out / 'study.json', *out.glob('runs/*/status.json')]:
        about = json.loads(path.read_text(encoding='utf-8'))
        (about['plan'] if 'plan' in about else about['study'])['data'] = 'mnist'
        path.write_text(json.dumps(about), encoding='utf-8')

    def no_network(*_, **__):
        raise AssertionError('somebody reaches for the network')

    monkeypatch.setattr('socket.socket.connect', no_network)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    return out


def test_a_finished_study_downloads_nothing(finished_mnist, tmp_path):
    study = read_study(finished_mnist)
    with pytest.warns(
        UserWarning, match='mnist is not in .*empty; `normnotes data mnist` fetches it'
    ):
        results = run_study(study, finished_mnist, root=tmp_path / 'empty', jobs=1, progress='none')
    assert not results.missing and (finished_mnist / 'accuracy.png').exists()
    assert not list(finished_mnist.glob('misclassified*')) and not (tmp_path / 'empty').exists()


def test_images_that_are_at_hand_are_used(finished_mnist, pictures, tmp_path):
    from normnotes.data import _pack, load_data

    cache = tmp_path / 'cache/mnist.safetensors'
    cache.parent.mkdir()
    cache.write_bytes(_pack(load_data(pictures, pictures.parent / 'cache'), ''))
    study = read_study(finished_mnist)
    run_study(study, finished_mnist, root=cache.parent, jobs=1, progress='none')
    assert len(list(finished_mnist.glob('misclassified*'))) == 2
    cache.write_bytes(cache.read_bytes()[:-1])
    with pytest.warns(UserWarning, match='the pictures of mistakes are not drawn'):
        assert studies._at_hand('mnist', cache.parent) is None


# What goes wrong


def test_a_run_that_diverges_is_recorded_and_others_go_on(tiny, run, tmp_path):
    results = run(tiny.change(variants='bn@lr=1e30,gn'), tmp_path)
    assert results.diverged == [('bn@lr=1e30', 0), ('bn@lr=1e30', 1)] and not results.missing
    assert results.values()['gn'].notna().all()
    assert 'bn@lr=1e30 with seed 0 diverged' in (tmp_path / 'summary.md').read_text(
        encoding='utf-8'
    )
    assert 'cannot be compared' in results.verdicts()[0]
    before = (tmp_path / 'runs/bn@lr=1e30-s0/status.json').stat().st_mtime_ns
    run(tiny.change(variants='bn@lr=1e30,gn'), tmp_path)  # and not tried again
    assert (tmp_path / 'runs/bn@lr=1e30-s0/status.json').stat().st_mtime_ns == before


def test_a_run_that_fails_is_named_and_others_go_on(tiny, run, tmp_path, monkeypatch):
    real = studies.fit

    def fit(model, data, config, **more):
        if config.l1 and config.seed == 0:
            raise RuntimeError('out of memory')
        return real(model, data, config, **more)

    monkeypatch.setattr(studies, 'fit', fit)
    with pytest.raises(
        StudyError, match=r'1 of 4 runs failed; bn\+l1 seed 0: RuntimeError: out of memory'
    ):
        run(tiny, tmp_path)
    assert Results.load(tmp_path).missing == [('bn+l1', 0)]
    assert 'Traceback' in (tmp_path / 'runs/bn+l1-s0/error.txt').read_text(encoding='utf-8')
    monkeypatch.undo()
    assert not run(tiny, tmp_path).missing
    assert not (tmp_path / 'runs/bn+l1-s0/error.txt').exists()


@pytest.mark.parametrize('damage', ['cut', 'changed', 'empty', 'history'])
def test_a_corrupt_checkpoint(tiny, pictures, run, tmp_path, damage, undisturbed, monkeypatch):
    """Training goes on from the epoch before, or starts anew; the end is the same. So it is if the table is damaged."""
    out, real = tmp_path / 'out', studies.fit

    def fit(model, data, config, on_epoch, **more):
        def stop(row):
            on_epoch(row)
            if row['epoch'] == 2:
                raise KeyboardInterrupt

        return real(model, data, config, on_epoch=stop, **more)

    monkeypatch.setattr(studies, 'fit', fit)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, out)
    monkeypatch.undo()
    (path,) = out.glob('runs/*/checkpoint.safetensors')
    good = path.read_bytes()
    changed = bytearray(good)
    changed[-5] ^= 1
    if damage == 'history':
        path.with_name('history.csv').write_bytes(b'epoch,test_acc\n\xff\x00,much\n')
    else:
        path.write_bytes(
            {'cut': good[: len(good) // 2], 'changed': bytes(changed), 'empty': b''}[damage]
        )
    run(tiny, out)
    assert_same(out, undisturbed)


@pytest.mark.parametrize(
    'name', ['status.json', 'evaluation.npz', 'weights.safetensors', 'history.csv']
)
def test_a_damaged_run_is_run_again(run, tiny, undisturbed, tmp_path, name):
    out = tmp_path / 'damaged'
    shutil.copytree(undisturbed, out)
    path = out / 'runs/gn-s1' / name
    path.write_bytes(path.read_bytes()[:-7])
    assert Results.load(out).missing == [('gn', 1)]
    run(tiny, out)
    assert_same(out, undisturbed)


def test_corrupt_tables_are_rebuilt(run, tiny, undisturbed, tmp_path):
    out = tmp_path / 'damaged'
    shutil.copytree(undisturbed, out)
    for name in ('results.csv', 'summary.csv', 'summary.md', 'mistakes.npz'):
        (out / name).write_bytes(b'\x00 nonsense')
    run(tiny, out)
    assert_same(out, undisturbed)


def test_without_runs_the_tables_answer(undisturbed, tmp_path):
    out = tmp_path / 'kept'
    shutil.copytree(undisturbed, out, ignore=shutil.ignore_patterns('runs'))
    kept, whole = Results.load(out), Results.load(undisturbed)
    assert kept.to_markdown() == whole.to_markdown()
    pd.testing.assert_frame_equal(kept.pairs(), whole.pairs())
    (out / 'results.csv').write_text('nonsense', encoding='utf-8')
    with pytest.raises(StudyError, match='cannot be read'):
        Results.load(out)


def test_tables_without_runs_are_not_overwritten(run, tiny, undisturbed, tmp_path):
    out = tmp_path / 'kept'
    shutil.copytree(undisturbed, out, ignore=shutil.ignore_patterns('runs'))
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for study in (tiny, tiny.change(seeds=3)):
        with pytest.raises(
            StudyError, match='holds tables without the runs they came from; choose another folder'
        ):
            run(study, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / 'runs/gn-s0').mkdir(parents=True)  # as an interrupted attempt would leave it
    assert Results.load(out).to_markdown() == Results.load(undisturbed).to_markdown()


def test_a_corrupt_study_file(run, tiny, tmp_path, undisturbed):
    out = tmp_path / 'damaged'
    shutil.copytree(undisturbed, out)
    (out / 'study.json').write_text('{"study": {"naem": "x"}}', encoding='utf-8')
    with pytest.raises(
        StudyError, match=r"unknown key 'naem'.*did you mean 'name'.*finished runs are kept"
    ):
        run(tiny, out)
    (out / 'study.json').write_text('{', encoding='utf-8')
    with pytest.raises(StudyError, match='delete it and run the study again'):
        run(tiny, out)
    (out / 'study.json').unlink()
    first = (out / 'runs/gn-s0/status.json').stat().st_mtime_ns
    run(tiny, out)
    assert (out / 'runs/gn-s0/status.json').stat().st_mtime_ns == first
    assert_same(out, undisturbed)


@pytest.mark.parametrize('jobs', [1, 2])
@posix
def test_a_full_disk(tiny, pictures, run, tmp_path, undisturbed, jobs):
    """Files may grow to 20 kB: a checkpoint does not fit. Nothing finished is lost, and the error is one line."""
    out = tmp_path / 'full'
    run(tiny.change(seeds=1), out)
    done = contents(out)[1]
    code = (
        'import json, resource, sys\n'
        'from normnotes.studies import Study, StudyError, run_study\n'
        'study, out, root, jobs = json.loads(sys.argv[1])\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n'
        'try: run_study(Study.from_dict(study), out, root=root, jobs=jobs, progress="none", figures=False)\n'
        'except StudyError as error: print(error)\n'
    )
    words = json.dumps([tiny.to_dict(), str(out), str(pictures.parent / 'cache'), jobs])
    ended = subprocess.run(
        [sys.executable, '-c', code, words], capture_output=True, text=True, timeout=300, env=ENV
    )
    assert ended.stdout.count('\n') == 1 and 'cannot write to' in ended.stdout, ended
    assert 'File too large' in ended.stdout and 'finished runs are kept' in ended.stdout
    assert {k: v for k, v in contents(out)[1].items() if '-s0' in k} == {
        k: v for k, v in done.items() if '-s0' in k
    }
    run(tiny, out)  # room again
    assert_same(out, undisturbed)


def test_a_folder_that_cannot_be_written(run, tiny, tmp_path):
    (tmp_path / 'file').write_text('in the way', encoding='utf-8')
    with pytest.raises(StudyError, match=r'cannot write to .*choose another folder') as caught:
        run(tiny, tmp_path / 'file' / 'out')
    assert '\n' not in str(caught.value)


# Statistics, by simulation


def study_of(accuracies_a, accuracies_b, images=10_000):
    """Results with the given accuracies, each net right on images drawn at random."""
    study = Study(
        'simulated', variants='bn,ln', seeds=len(accuracies_a), train=TrainConfig(epochs=1)
    )
    rows = [
        dict.fromkeys(studies.COLUMNS[3:], 0.0)
        | {'variant': v, 'seed': s, 'epoch': 1, 'test_acc': accuracy}
        for v, accuracies in (('bn', accuracies_a), ('ln', accuracies_b))
        for s, accuracy in enumerate(accuracies)
    ]
    return Results(study, pd.DataFrame(rows))


def claimed(effect, seeds, repeats=1000, luck=0.1, noise=0.05):
    """How often a verdict names the first variant, and the second; both share the luck of their seeds."""
    rng, right, wrong = np.random.default_rng(3), 0, 0
    for repeat in range(repeats):
        shared = 99 + luck * rng.standard_normal(seeds)
        a = shared + effect + noise * rng.standard_normal(seeds)
        b = shared + noise * rng.standard_normal(seeds)
        verdict = Comparison('bn', 'ln', 'test_acc', dict(enumerate(a - b))).verdict
        if repeat < 3:  # and so it is for results
            assert verdict == study_of(a, b).compare('bn', 'ln').verdict
        right += verdict.startswith('bn is better')
        wrong += verdict.startswith('ln is better')
    return right / repeats, wrong / repeats


def test_no_difference_is_claimed_in_about_five_percent():
    right, wrong = claimed(0.0, 5)
    assert 0.03 < right + wrong < 0.075


def test_a_true_difference_is_found_as_often_as_promised():
    seeds = studies.seeds_needed(0.06, 0.05 * np.sqrt(2))
    right, wrong = claimed(0.06, seeds)
    assert 0.75 < right < 0.87 and wrong == 0
    assert claimed(0.06, 3)[0] < 0.3  # and three seeds will not do


def test_holm_keeps_false_claims_rare():
    rng = np.random.default_rng(0)
    any_claim = plain_claim = 0
    for _ in range(400):
        values = rng.standard_normal((5, 5))  # five variants, five seeds, no difference
        p = [studies.estimate(values[i] - values[j]).p for i in range(5) for j in range(i)]
        plain_claim += min(p) < 0.05
        any_claim += min(studies.holm(p)) < 0.05
    assert any_claim / 400 < 0.08 < 0.15 < plain_claim / 400


def test_mcnemar_holds_its_level_with_any_number_of_seeds():
    rng = np.random.default_rng(0)
    for seeds in (1, 5):
        alarms = 0
        for _ in range(500):
            hard = np.where(
                rng.random(400) < 0.1, rng.choice([-1, 1], 400), 0
            )  # images that only one can read
            noise = rng.random((2, seeds, 400)) < 0.97
            alarms += mcnemar(noise[0] & (hard >= 0), noise[1] & (hard <= 0))[2] < 0.05
        assert alarms / 500 < 0.08


def test_mcnemar_is_used_on_the_same_images():
    labels = torch.zeros(100, dtype=torch.long)

    def evaluation(right):
        said = torch.where(torch.as_tensor(right), 0, 1)
        return Evaluation(said, torch.ones(100), torch.ones(100), labels)

    a, b = np.arange(100) >= 3, np.arange(100) < 90  # 10 against 3
    results = study_of([97.0], [90.0])
    results.evaluations = {('bn', 0): evaluation(a), ('ln', 0): evaluation(b)}
    c = results.compare('bn', 'ln')
    assert (c.only_a, c.only_b) == (10, 3)
    assert c.p_images == pytest.approx(0.0922851, abs=1e-6)  # the binomial, worked by hand
    assert c.verdict == (
        'these two nets differ by 7.00 points on the test images (McNemar p = 0.09); '
        'one seed says nothing about other seeds'
    )


# Notation and plain data


def test_variants_are_printed_back_as_they_are_read():
    from hypothesis import given
    from hypothesis import strategies as st

    strength = st.one_of(st.booleans(), st.floats(1e-12, 1e6).map(lambda x: float(f'{x:.9g}')))
    settings = st.lists(
        st.one_of(
            st.tuples(st.just('lr'), st.floats(1e-6, 10).map(lambda x: float(f'{x:.6g}'))),
            st.tuples(st.just('batch_size'), st.integers(1, 10**6)),
            st.tuples(st.just('nesterov'), st.booleans()),
        ),
        unique_by=lambda s: s[0],
    )

    @given(st.sampled_from(['bn', 'ln', 'gn', 'in', 'lnc', 'none']), strength, strength, settings)
    def check(norm, l1, l2, own):
        variant = Variant(norm, None, l1, l2, tuple(own))
        assert Variant.parse(str(variant)) == variant
        assert str(Variant.parse(str(variant))) == str(variant)

    check()


def test_no_two_variants_share_a_folder():
    texts = [
        'gn',
        'gn:4',
        'gn:2',
        'bn',
        'bn+l1',
        'bn+l1=1e-4',
        'bn+l1=1e-5',
        'bn@lr=0.1',
        'bn@lr=1e-3',
    ]
    assert len({Variant.parse(t).slug.lower() for t in texts}) == len(texts)
    assert not any(set(Variant.parse(t).slug) & set('<>:"/\\|?*') for t in texts)


def test_every_preset_is_whole(tmp_path):
    for study in studies.STUDIES.values():
        (tmp_path / 'study.json').write_text(study.to_json(), encoding='utf-8')
        assert read_study(tmp_path) == study
