"""The `normnotes` command as a person meets it: in a process of its own, stopped, killed, misspelt."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from normnotes import cli

posix = pytest.mark.skipif(os.name == 'nt', reason='sends signals the POSIX way')
SHORT = '--epochs 2 --seeds 1 --batch-size 32 --lr 0.1 --augment none --jobs 1'


@pytest.fixture
def start(tmp_path, pictures):
    """Starts `normnotes WORDS` in a process group of its own, as a shell does."""
    started = []

    def start(words, more_env=None, **options):
        here = str(Path(cli.__file__).parents[1])  # the same package as in this process
        env = {
            **os.environ,
            'NORMNOTES_DATA': str(pictures.parent / 'cache'),
            'COLUMNS': '100',
            'PYTHONPATH': here,
        }
        env |= more_env or {}
        pipes = {
            'stdout': subprocess.PIPE,
            'stderr': subprocess.PIPE,
            'text': True,
            'encoding': 'utf-8',
        }
        options = {
            'cwd': tmp_path,
            'env': env,
            'start_new_session': os.name != 'nt',
            **pipes,
            **options,
        }
        started.append(
            subprocess.Popen(
                [sys.executable, '-m', 'normnotes.cli', *shlex.split(words)], **options
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def normnotes(start):
    """Runs `normnotes WORDS` to its end: exit code, standard output, standard error."""

    def run(words, **options):
        process = start(words, **options)
        out, err = process.communicate(timeout=500)
        return process.returncode, out, err

    return run


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope='session')
def finished(pictures, tmp_path_factory):
    """What `compare` leaves of bn and ln on the pictures; tests that write take a copy."""
    out = tmp_path_factory.mktemp('finished') / 'out'
    words = [
        'compare',
        '--data',
        str(pictures),
        '--variants',
        'bn,ln',
        '--out',
        str(out),
        *SHORT.split(),
        '--quiet',
    ]
    assert cli.main([*words, '--data-dir', str(pictures.parent / 'cache')]) == 0
    return out


def assert_same_files(one, two):
    """Two folders of one study hold the same, but for the seconds that epochs took."""
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    for path in one.iterdir():
        if path.name == 'results.csv':
            first, second = (
                pd.read_csv(folder / path.name).drop(columns='seconds') for folder in (one, two)
            )
            assert first.equals(second)
        elif path.is_file():
            assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_the_whole_job_on_the_embedded_digits(normnotes, tmp_path):
    """compare as it comes, with fewer epochs: table, verdicts, figures, and what DESIGN fixes; then in three lines."""
    code, out, err = normnotes('compare --epochs 1 --seeds 2')
    assert code == 0, err
    folder = tmp_path / 'runs/compare-epochs=1'
    names = {p.name for p in folder.iterdir()}
    figures = {
        'loss.png',
        'accuracy.png',
        *(f'misclassified_{v}.png' for v in ('bn+l1', 'ln', 'gn')),
    }
    assert names == {
        'study.json',
        'results.csv',
        'summary.csv',
        'summary.md',
        'mistakes.npz',
        'runs',
        *figures,
    }
    table = pd.read_csv(folder / 'results.csv')
    assert list(
        table
    ) == 'variant,seed,epoch,train_loss,train_acc,penalty,test_loss,test_acc,lr,seconds'.split(',')
    assert len(table) == 6 and table.notna().all(axis=None)
    assert (table.penalty > 0).tolist() == [v == 'bn+l1' for v in table.variant]
    assert list(pd.read_csv(folder / 'summary.csv').variant) == ['bn+l1', 'ln', 'gn']
    about = json.loads((folder / 'study.json').read_text(encoding='utf-8'))
    assert about['study']['train']['epochs'] == 1 and about['made_with']['torch']
    for name in figures:
        assert name in out
        assert (folder / name).read_bytes()[:4] == b'\x89PNG' and (
            folder / name
        ).stat().st_size < 200_000
    assert '| variant' in out and out.count('can be told apart') + out.count(' than ') == 3
    assert (
        '6/6' in err and '\033' not in out + err
    )  # a line per run, and no colour where nobody looks
    assert 'compare: done in 0:' in err

    from normnotes.studies import Study, run_study

    study = Study.on('digits', epochs=1, seeds=2)
    results = run_study(study, tmp_path / 'python', jobs=1, progress='none')
    assert_same_files(folder, tmp_path / 'python')
    assert all(line in out for line in str(results).splitlines() if line.startswith(('|', '-')))


@posix
def test_in_a_terminal(start, pictures):
    """One bar for the whole study, redrawn in place and gone at the end; verdicts stand out."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 140, 0, 0))  # rows, columns
    words = f'compare --data {shlex.quote(str(pictures))} --variants bn,ln --epochs 20 --seeds 2 --jobs 1 --out out'
    process = start(
        words, stdout=slave, stderr=slave, text=False, encoding=None, more_env={'TERM': 'xterm'}
    )
    os.close(slave)
    parts = []
    while True:
        try:
            parts.append(os.read(master, 10_000))
        except OSError:  # the other end is closed
            break
        if not parts[-1]:
            break
    os.close(master)
    assert process.wait(60) == 0
    text = b''.join(parts).decode()
    assert 'gone, ' in text and 'runs done' in text and '\r' in text
    assert '/4 runs done · bn s0 ' in text
    assert '\033[1mcompare\033[0m' in text
    assert 'runs done' not in text.split('compare: done in')[1]


def test_two_commands_at_once_on_one_folder(start, normnotes, pictures, finished, tmp_path):
    words = f'compare --data {shlex.quote(str(pictures))} --variants bn,ln --out shared {SHORT}'
    for process in [start(words) for _ in range(2)]:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert '| bn' in out and '| ln' in out and 'Not finished' not in out
    assert_same_files(tmp_path / 'shared', finished)


def test_a_terminal_that_knows_no_dashes(normnotes, finished, pictures, tmp_path):
    shutil.copytree(finished, tmp_path / 'out')
    ascii_only = {'more_env': {'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C'}, 'encoding': 'ascii'}
    words = f'compare --data {shlex.quote(str(pictures))} --variants bn,ln,gn --out out {SHORT}'
    code, out, err = normnotes(words, **ascii_only)
    assert code == 0 and '| gn' in out and ' ? |' in out and '3/3' in err, err
    assert normnotes('--help', **ascii_only)[0] == 0
    assert '–' in (tmp_path / 'out/summary.md').read_text(
        encoding='utf-8'
    )  # files are UTF-8 everywhere


def test_report_of_a_finished_study_in_a_folder_that_may_not_be_written(
    capsys, finished, tmp_path, monkeypatch
):
    """Table and verdicts are printed; what could not be written is said in one line."""
    out = tmp_path / 'out'
    shutil.copytree(finished, out)
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    if os.name == 'posix' and os.geteuid() == 0:  # to whom no folder is closed

        def refuse(path, *_):
            raise PermissionError(13, 'Permission denied', str(path))

        monkeypatch.setattr('normnotes.studies.write_atomic', refuse)
        monkeypatch.setattr('normnotes.plotting.write_atomic', refuse)
    else:
        out.chmod(0o500)
    monkeypatch.setenv('NORMNOTES_DATA', str(tmp_path / 'cache'))
    try:
        code = cli.main(['report', str(out)])
    finally:
        out.chmod(0o700)
    printed, err = capsys.readouterr()
    assert code == 1 and err.count('\n') == 1 and f'cannot write to {out}' in err, err
    assert '| bn' in printed and '| ln' in printed and 'McNemar' in printed
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_report_downloads_nothing(capsys, finished, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    shutil.copytree(finished, out)
    about = json.loads((out / 'study.json').read_text(encoding='utf-8'))
    about['study']['data'] = 'cifar10'
    (out / 'study.json').write_text(json.dumps(about), encoding='utf-8')
    (out / 'accuracy.png').unlink()
    picture = (out / 'misclassified_bn.png').read_bytes()

    def no_network(*_, **__):
        raise AssertionError('somebody reaches for the network')

    monkeypatch.setattr('socket.socket.connect', no_network)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    assert cli.main(['report', str(out), '--data-dir', str(tmp_path / 'empty')]) == 0
    printed, err = capsys.readouterr()
    assert (
        err.count('\n') == 1
        and 'cifar10 is not in' in err
        and '`normnotes data cifar10` fetches it' in err
    )
    assert '| bn' in printed and 'misclassified' not in printed
    assert (out / 'accuracy.png').exists() and (
        out / 'misclassified_bn.png'
    ).read_bytes() == picture
    assert not (tmp_path / 'empty').exists()


@pytest.fixture
def here(capsys, pictures, tmp_path, monkeypatch):
    """`normnotes WORDS` in this process, which saves its start: exit code, standard output, standard error."""
    monkeypatch.setenv('NORMNOTES_DATA', str(pictures.parent / 'cache'))
    monkeypatch.chdir(tmp_path)

    def run(words):
        code = cli.main(shlex.split(words))
        return code, *capsys.readouterr()

    return run


def test_json_and_report(here, pictures, finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'out')
    words = f'compare --data {shlex.quote(str(pictures))} --variants bn,ln --out out {SHORT} --json'
    code, out, _ = here(words)
    found = json.loads(out)
    assert code == 0 and found['study'] == 'compare' and len(found['summary']) == 2
    assert found['settings']['model'] == 'cifarnet'  # for image folders
    table, figure = (
        (tmp_path / 'out/results.csv').read_bytes(),
        (tmp_path / 'out/loss.png').read_bytes(),
    )
    (tmp_path / 'out/results.csv').write_text('garbage', encoding='utf-8')
    (tmp_path / 'out/loss.png').unlink()
    code, out, err = here('report .')  # found below
    assert code == 0, err
    assert 'out/summary.md' in out.replace('\\', '/')
    assert (tmp_path / 'out/results.csv').read_bytes() == table
    assert (tmp_path / 'out/loss.png').read_bytes() == figure
    code, out, _ = here('report out --json')
    assert json.loads(out)['summary'] == found['summary']


def test_studies_of_the_book_in_small(here, pictures, tmp_path):
    """All but one can be trained on images of 8x8; that one is named, and does not hold up the others."""
    data = shlex.quote(str(pictures))
    code, _, err = here(
        f'study as-published --data {data} --epochs 1 --seeds 1 --jobs 1 --batch-size 64 --out here'
    )
    assert code == 1
    assert (
        "as-published/eva8: variant 'bn+l1' of as-published/eva8: 'net-eva8' needs images of at least"
        in err
    )
    assert sorted(p.name for p in (tmp_path / 'here').iterdir()) == [
        'era',
        'eva4',
        'eva6',
        'session5',
    ]
    assert 'penalty starts at' in err  # the warning that would have saved a published study
    code, out, err = here('report here --json')
    assert code == 0, err
    assert [(r['study'], len(r['missing'])) for r in json.loads(out)][-2:] == [
        ('as-published/eva6', 0),
        ('as-published/session5', 0),
    ]


@posix
@pytest.mark.parametrize(
    ('number', 'jobs'), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)]
)
def test_stopped_and_gone_on(start, normnotes, pictures, tmp_path, number, jobs):
    words = f'compare --data {shlex.quote(str(pictures))} --variants bn,ln --epochs 400 --out out --jobs {jobs}'
    process = start(words)
    wait_for(lambda: len(list(tmp_path.glob('out/runs/*/history.csv'))) == jobs, process)
    began = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # Ctrl-C reaches the workers as well
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 20
    assert err.rstrip().endswith(f'To go on:\n  normnotes {words}'), err
    assert 'Traceback' not in err and 'KeyboardInterrupt' not in err, err
    with pytest.raises(ProcessLookupError):  # nobody of the group is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@posix
def test_killed_and_given_again(start, here, pictures, tmp_path):
    def words(out):
        data = shlex.quote(str(pictures))
        return f'compare --data {data} --variants bn,bn+l1 --out {out} {SHORT} --epochs 6 --seeds 2'

    process = start(words('killed'))
    wait_for(lambda: list(tmp_path.glob('killed/runs/*/status.json')), process)
    process.kill()
    process.communicate()
    for out in ('killed', 'whole'):
        code, _, err = here(words(out))
        assert code == 0, err
    for name in (
        'summary.csv',
        'summary.md',
        'mistakes.npz',
        'loss.png',
        'accuracy.png',
        'misclassified_bn.png',
    ):
        assert (tmp_path / 'killed' / name).read_bytes() == (
            tmp_path / 'whole' / name
        ).read_bytes(), name
    killed, whole = (
        pd.read_csv(tmp_path / n / 'results.csv').drop(columns='seconds')
        for n in ('killed', 'whole')
    )
    assert killed.equals(whole)


@posix
def test_a_folder_that_may_not_be_written(normnotes, pictures, tmp_path):
    if os.geteuid() == 0:
        (tmp_path / 'out').write_text(
            '', encoding='utf-8'
        )  # nothing is forbidden to root, but a file is no folder
    else:
        (tmp_path / 'out').mkdir(mode=0o500)
    code, out, err = normnotes(
        f'compare --data {shlex.quote(str(pictures))} --out out {SHORT} --quiet'
    )
    assert code == 1 and err.count('\n') == 1 and 'cannot write to' in err and out == ''


@posix
def test_no_room(here, normnotes, pictures, tmp_path):
    import resource

    words = f'compare --data {shlex.quote(str(pictures))} --variants ln --out out {SHORT} --quiet'
    assert here(words)[0] == 0
    before = (tmp_path / 'out/runs/ln-s0/status.json').read_bytes()

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    code, _, err = normnotes(
        words.replace('--variants ln', '--variants ln,bn'), preexec_fn=little_room
    )
    assert (
        code == 1
        and err.count('\n') == 1
        and 'cannot write to' in err
        and 'finished runs are kept' in err
    ), err
    assert (tmp_path / 'out/runs/ln-s0/status.json').read_bytes() == before
    assert here(words.replace('--variants ln', '--variants ln,bn'))[0] == 0


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        ('', 'no command'),
        ('comapre', "unknown command 'comapre'; did you mean 'compare'?"),
        ('compare --epochs 0', "--epochs: '0' is not allowed; use a whole number from 1 up"),
        ('compare --epochs', '--epochs: expected one argument'),
        ('compare --lr none', "--lr: 'none' is not allowed; use a number above 0"),
        ('compare --seeds 1,1', "--seeds: '1,1' is not allowed"),
        ('compare --seeds ,', "--seeds: ',' is not allowed"),
        ('compare --jobs -2', "--jobs: '-2' is not allowed"),
        ('compare --bach-size 3', "unknown option '--bach-size'; did you mean '--batch-size'?"),
        ('compare --variants bn,bm', "variant 'bm': unknown norm 'bm'"),
        ('compare --variants bn,bn', "'bn' is there twice"),
        ('compare --data mnits', "unknown data set 'mnits'; did you mean 'mnist'?"),
        ('compare --model net8', "unknown model 'net8'"),
        ('compare --augment heavy', 'heavy'),
        ('study mnist-nroms', "unknown study 'mnist-nroms'; did you mean 'mnist-norms'?"),
        ('study nowhere.json', "no file 'nowhere.json'"),
        ('studies nothing', "unknown study 'nothing'"),
        ('compare --device nonsense', "no device 'nonsense' here; use cpu"),
        ('compare --device meta', "no device 'meta' here; use cpu"),
        ('report nowhere', "no folder 'nowhere'"),
        ('data minst', "unknown data set 'minst'; did you mean 'mnist'?"),
    ],
)
def test_what_is_not_understood(capsys, words, said):
    assert cli.main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and not out, err


def test_a_device_that_is_not_there(capsys, tmp_path):
    assert cli.main(['compare', '--out', str(tmp_path / 'out'), '--device', 'cuda:99']) == 2
    err = capsys.readouterr().err
    assert "no device 'cuda:99' here; use cpu" in err and err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('text', ['{', '3', '{"train": 3}', '{"seeds": null}', '{"variants": 5}'])
def test_a_bad_study_file(capsys, tmp_path, text):
    path = tmp_path / 'mine.json'
    path.write_text(text, encoding='utf-8')
    assert cli.main(['study', str(path)]) == 2
    err = capsys.readouterr().err
    assert 'mine.json cannot be read as a study' in err and err.count('\n') == 1


def test_a_broken_study_does_not_stop_the_group(capsys, pictures, tmp_path, monkeypatch):
    from normnotes import studies

    monkeypatch.setenv('NORMNOTES_DATA', str(pictures.parent / 'cache'))
    small = studies.Study('small', str(pictures), variants='ln', seeds=1).change(
        epochs=1, augment='none'
    )
    both = [small.change(name='gone', data=str(tmp_path / 'gone')).to_dict(), small.to_dict()]
    (tmp_path / 'mine.json').write_text(json.dumps(both), encoding='utf-8')
    words = ['--out', str(tmp_path / 'out'), '--jobs', '1', '--json', '--quiet']
    assert cli.main(['study', str(tmp_path / 'mine.json'), *words]) == 1
    out, err = capsys.readouterr()
    bad, good = json.loads(out)
    assert set(bad) == {'study', 'error'} and good['missing'] == [] and 'gone' in err
    (tmp_path / 'out/gone').mkdir()
    (tmp_path / 'out/gone/study.json').write_text('{', encoding='utf-8')
    assert cli.main(['report', str(tmp_path / 'out'), '--json']) == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert 'cannot be read' in bad['error'] and good['study'] == 'small'


def test_only_what_was_asked_is_printed(capsys, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('NORMNOTES_DATA', str(pictures.parent / 'cache'))
    words = ['compare', '--data', str(pictures), '--out', str(tmp_path / 'out'), *SHORT.split()]
    assert cli.main([*words, '--variants', 'bn,ln', '--quiet']) == 0
    assert cli.main([*words, '--variants', 'gn']) == 0
    out = capsys.readouterr().out
    assert '| gn' in out and '| bn' not in out and 'the folder also holds bn, ln' in out
    assert cli.main([*words, '--variants', 'gn', '--json', '--quiet']) == 0
    assert [row['variant'] for row in json.loads(capsys.readouterr().out)['summary']] == ['gn']
    assert len(pd.read_csv(tmp_path / 'out/summary.csv')) == 3  # the files hold all


@pytest.mark.parametrize(
    'words', ['studies', 'data digits', 'report .', 'compare --seeds 1', 'study mnist-norms']
)
def test_only_a_study_is_resumed(capsys, monkeypatch, words):
    """Ctrl-C: 130, and how to go on where there is something to go on with."""

    def stop(args):
        raise KeyboardInterrupt

    for name in ('_run', '_list', '_report', '_fetch'):
        monkeypatch.setattr(cli, name, stop)
    assert cli.main(words.split()) == 130
    err = capsys.readouterr().err
    if words.startswith(('compare', 'study ')):
        assert (
            err == f'\nnormnotes: stopped; finished runs are kept. To go on:\n  normnotes {words}\n'
        )
    else:
        assert err == '\nnormnotes: stopped\n'


def test_colour_only_for_people(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.delenv('NO_COLOR', raising=False)
    monkeypatch.setenv('TERM', 'xterm')
    assert cli._colour(Terminal())
    monkeypatch.setenv('NO_COLOR', '1')
    assert not cli._colour(Terminal())
    monkeypatch.delenv('NO_COLOR')
    monkeypatch.setenv('TERM', 'dumb')
    assert not cli._colour(Terminal())
    assert not cli._colour(open(os.devnull))


def test_a_reader_that_stops_reading(start):
    process = start('studies')
    process.stdout.close()
    err = process.stderr.read()
    process.wait(60)
    assert 'Traceback' not in err and 'BrokenPipe' not in err, err


def test_quick_answers(normnotes):
    began = time.monotonic()
    code, out, _ = normnotes('--version')
    assert code == 0 and out.startswith('normnotes ')
    code, out, _ = normnotes('compare --help')
    assert code == 0 and 'examples:' in out and max(map(len, out.splitlines())) <= 120
    assert time.monotonic() - began < 10
