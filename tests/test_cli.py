"""The `normnotes` command: what it understands, prints, writes, and how it ends."""

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
from normnotes.studies import COLUMNS, STUDIES, Results, Study, read_study

SHORT = '--epochs 2 --seeds 1 --batch-size 32 --lr 0.1 --augment none --jobs 1'


@pytest.fixture
def here(capsys, pictures, tmp_path, monkeypatch):
    "`normnotes WORDS` in this process and an empty folder: exit code, output, errors."
    monkeypatch.setenv('NORMNOTES_DATA', str(pictures.parent / 'cache'))
    monkeypatch.chdir(tmp_path)

    def run(words):
        code = cli.main(shlex.split(words))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def start(tmp_path, pictures):
    "Starts `normnotes WORDS` in a process group of its own, as a shell does."
    started = []

    def start(words, **more_env):
        env = {**os.environ, 'NORMNOTES_DATA': str(pictures.parent / 'cache'), **more_env}
        env['PYTHONPATH'] = str(Path(cli.__file__).parents[1])  # the package of this process
        process = subprocess.Popen(
            [sys.executable, '-m', 'normnotes.cli', *shlex.split(words)],
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding='utf-8',
            start_new_session=os.name != 'nt',
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture
def normnotes(start):
    "Runs `normnotes WORDS` in a process: exit code, output, errors."

    def run(words, **more_env):
        process = start(words, **more_env)
        out, err = process.communicate(timeout=500)
        return process.returncode, out, err

    return run


@pytest.fixture(scope='session')
def finished(pictures, tmp_path_factory):
    "What `compare` leaves of bn and ln on the pictures; tests that write take a copy."
    out = tmp_path_factory.mktemp('finished') / 'out'
    words = ['compare', '--data', str(pictures), '--variants', 'bn,ln', *SHORT.split(), '--quiet']
    data_dir = str(pictures.parent / 'cache')
    assert cli.main([*words, '--out', str(out), '--data-dir', data_dir]) == 0
    return out


@pytest.fixture
def out(finished, tmp_path):
    "A copy of the finished study, in the working folder of `here`."
    return shutil.copytree(finished, tmp_path / 'out')


# What it does


def test_the_whole_job_on_the_embedded_digits(normnotes, tmp_path):
    "Table, verdicts, figures and files."
    code, out, err = normnotes('compare --epochs 1 --seeds 2')
    assert code == 0, err
    folder = tmp_path / 'runs/compare-epochs=1'
    variants = ['bn+l1', 'ln', 'gn']
    figures = {'loss.png', 'accuracy.png', *(f'misclassified_{v}.png' for v in variants)}
    tables = {'study.json', 'results.csv', 'summary.csv', 'summary.md', 'mistakes.npz'}
    assert {p.name for p in folder.iterdir()} == {*figures, *tables, 'runs'}
    for name in figures:
        content = (folder / name).read_bytes()
        assert name in out and content[:4] == b'\x89PNG' and len(content) < 200_000
    table = pd.read_csv(folder / 'results.csv')
    assert list(table) == list(COLUMNS)
    assert len(table) == 6 and table.notna().all(axis=None)
    assert (table.penalty > 0).tolist() == [v == 'bn+l1' for v in table.variant]
    assert list(pd.read_csv(folder / 'summary.csv').variant) == variants
    assert json.loads((folder / 'study.json').read_text(encoding='utf-8'))['made_with']['torch']
    assert 'Traceback' not in err and '\033' not in out + err
    assert read_study(folder) == Study.for_data('digits', epochs=1, seeds=2)
    lines = str(Results.load(folder)).splitlines()
    assert all(line in out for line in lines if line.startswith(('|', '-')))


def test_json_and_report(here, pictures, out):
    words = f'compare --data {shlex.quote(str(pictures))} --variants bn,ln --out out {SHORT} --json'
    code, printed, _ = here(words)
    found = json.loads(printed)
    assert code == 0 and found['study'] == 'compare' and len(found['summary']) == 2
    assert found['settings']['model'] == 'cifarnet'  # for image folders
    table, figure = (out / 'results.csv').read_bytes(), (out / 'loss.png').read_bytes()
    (out / 'results.csv').write_text('garbage', encoding='utf-8')
    (out / 'loss.png').unlink()
    code, printed, err = here('report out')
    assert code == 0 and 'summary.md' in printed, err
    assert (out / 'results.csv').read_bytes() == table
    assert (out / 'loss.png').read_bytes() == figure
    assert json.loads(here('report out --json')[1])['summary'] == found['summary']


def test_a_report_on_a_folder_that_may_not_be_written(here, out, monkeypatch):
    "The table is printed; what could not be written is one line."
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}

    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('normnotes.core.os.replace', refuse)
    code, printed, err = here('report out')
    assert code == 1 and err.count('\n') == 1 and 'out' in err, err
    assert '| bn' in printed and '| ln' in printed
    assert {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()} == before


def test_a_report_downloads_nothing(here, out, tmp_path, monkeypatch):
    about = json.loads((out / 'study.json').read_text(encoding='utf-8'))
    about['study']['data'] = 'cifar10'
    (out / 'study.json').write_text(json.dumps(about), encoding='utf-8')
    (out / 'accuracy.png').unlink()
    picture = (out / 'misclassified_bn.png').read_bytes()

    def no_network(*_, **__):
        raise AssertionError('somebody reaches for the network')

    monkeypatch.setattr('socket.socket.connect', no_network)
    monkeypatch.setattr('socket.getaddrinfo', no_network)
    code, printed, err = here('report out --data-dir empty')
    assert code == 0 and err.count('\n') == 1 and 'normnotes data cifar10' in err, err
    assert '| bn' in printed and 'misclassified' not in printed
    assert (out / 'accuracy.png').exists() and not (tmp_path / 'empty').exists()
    assert (out / 'misclassified_bn.png').read_bytes() == picture


def test_only_what_was_asked_is_printed(here, pictures, out):
    words = f'compare --data {shlex.quote(str(pictures))} --out out {SHORT}'
    code, printed, err = here(f'{words} --variants gn')
    assert code == 0 and '| gn' in printed and '| bn' not in printed and '2 more runs' in err
    code, printed, err = here(f'{words} --variants gn --json --quiet')
    assert [row['variant'] for row in json.loads(printed)['summary']] == ['gn'] and not err
    assert here(f'{words} --variants gn --quiet') == (0, '', '')
    assert len(pd.read_csv(out / 'summary.csv')) == 3  # the files hold all


def test_a_study_that_cannot_run_is_named(here, pictures, tmp_path):
    mine = Study('mine', str(pictures), 'net-eva8', 'ln', 1)  # the images are too small for it
    Path('mine.json').write_text(mine.to_json(), encoding='utf-8')
    code, printed, err = here('study mine.json --out out --jobs 1 --json --quiet')
    assert code == 1 and set(json.loads(printed)) == {'study', 'error'} and 'mine: ' in err


def test_a_broken_folder_is_named(here, tmp_path):
    (tmp_path / 'study.json').write_text('{', encoding='utf-8')
    code, printed, err = here('report . --json')
    assert code == 1 and set(json.loads(printed)) == {'study', 'error'} and 'study.json' in err


def test_studies_and_data_are_described(here):
    assert len(json.loads(here('studies --json')[1])) == len(STUDIES)
    assert Study.from_json(here('studies mnist-norms')[1]) == STUDIES['mnist-norms']
    about = json.loads(here('data digits --json')[1])
    assert about['train'] > about['test'] > 300 and len(about['classes']) == 10
    assert here('data digits')[1].startswith('digits: ')


# What it does not understand


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        ('', ['command']),
        ('comapre', ['comapre', 'compare']),
        ('compare --epochs 0', ['--epochs', "'0'", '>= 1']),
        ('compare --epochs', ['--epochs']),
        ('compare --lr none', ['--lr', 'none', '> 0']),
        ('compare --lr nan', ['nan']),
        ('compare --seeds 1,1', ['1']),
        ('compare --seeds ,', ["','"]),
        ('compare --jobs -2', ['--jobs']),
        ('compare --bach-size 3', ['--bach-size', '--batch-size']),
        ('report out --epochs 3', ['--epochs']),
        ('compare surplus', ['surplus']),
        ('compare --variants bn,bm', ['bm', 'bn']),
        ('compare --variants bn,bn', ["'bn'"]),
        ('compare --variants gn:3', ['gn:3', '10 channels']),
        ('compare --variants bn@lr=fast', ['bn@lr=fast']),
        ('compare --variants bn --l1 0.1', ['--l1', 'bn+l1']),
        ('compare --data mnits', ['mnits', 'mnist']),
        ('compare --model net8', ['net8', 'net-eva8']),
        ('compare --augment heavy', ['heavy', 'light']),
        ('compare --device nonsense', ['nonsense', 'cpu']),
        ('compare --device cuda:99', ['cuda:99', 'cpu']),
        ('compare --device meta', ['meta', 'cpu']),
        ('study', ['NAME']),
        ('study mnist-nroms', ['mnist-nroms', 'mnist-norms']),
        ('study nowhere.json', ['nowhere.json']),
        ('study mnist-norms --variants bn,gn:3', ['gn:3']),
        ('studies nothing', ['nothing']),
        ('report nowhere', ['nowhere']),
        ('data minst', ['minst', 'mnist']),
    ],
)
def test_a_usage_error_is_one_line_and_writes_nothing(here, tmp_path, words, named):
    code, printed, err = here(words)
    assert code == 2 and err.count('\n') == 1 and not printed, err
    assert all(name in err for name in named), err
    assert not list(tmp_path.iterdir())


# How it ends


@pytest.mark.skipif(os.name == 'nt', reason='sends the signal the POSIX way')
def test_ctrl_c_stops_the_command_and_its_workers(start, pictures, tmp_path):
    data = shlex.quote(str(pictures))
    process = start(f'compare --data {data} --variants bn,ln --epochs 400 --out out --jobs 2')
    end = time.monotonic() + 120
    while len(list(tmp_path.glob('out/runs/*/history.csv'))) < 2:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the workers as well
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert 'the same command' in err and 'Traceback' not in err, err
    with pytest.raises(ProcessLookupError):  # no process of the group is left
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_a_reader_that_stops_reading(start):
    process = start('studies')
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) == 0 and not err, err


def test_a_terminal_that_knows_no_dashes(normnotes, finished, tmp_path):
    shutil.copytree(finished, tmp_path / 'out')
    code, out, err = normnotes('report out', PYTHONIOENCODING='ascii', LC_ALL='C')
    assert code == 0 and '| bn' in out and '?' in out, err
    assert '–' in (tmp_path / 'out/summary.md').read_text(encoding='utf-8')


# Verdicts on a table


def test_verdicts_on_a_file(here, tmp_path):
    rows = [f'{v},{s},{a + s / 10}' for v, a in (('old net', 90), ('new', 95)) for s in range(3)]
    (tmp_path / 'mine.csv').write_text('\n'.join(['variant,seed,accuracy', *rows]), 'utf-8')
    code, out, err = here('verdict mine.csv --pairs "new:old net"')
    assert (code, err) == (0, '') and 'margin' in out
    rows[0] = 'old net,0,90.3'
    (tmp_path / 'mine.csv').write_text('\n'.join(['variant,seed,accuracy', *rows]), 'utf-8')
    code, out, err = here('verdict mine.csv --pairs "new:old net" --margin 1 --json')
    (found,) = json.loads(out)
    keys = 'a b metric difference low high margin verdict seeds more_seeds'
    assert list(found) == keys.split()
    assert (code, found['verdict'], found['seeds'], found['more_seeds']) == (0, 'ahead', 3, None)
    assert found['low'] < found['difference'] == 4.9 < found['high'] and found['margin'] == 1
    code, out, _ = here('verdict mine.csv --lower-is-better --json')
    assert json.loads(out)[0]['verdict'] == 'ahead'  # old net is first, and lower


WHOLE = 'variant,seed,loss\na,0,1.5\na,1,1.7\nb,0,2\nb,1,3\n'
BAD_FILES = {  # one for each way in; test_verdicts has all that may be wrong
    'no such file': (None, '', 'mine.csv'),
    'no such metric': (WHOLE, '--metric accuracy', "'accuracy'"),
    'a word': (WHOLE.replace('1.7', 'good'), '', 'line 3'),
    'no such pair': (WHOLE, '--pairs a:b,a:c', "'a:c'"),
    'no margin': (WHOLE, '--margin 0', "'0'"),
}


@pytest.mark.parametrize(('text', 'words', 'named'), BAD_FILES.values(), ids=list(BAD_FILES))
def test_a_bad_file_is_one_line_and_exit_code_2(here, tmp_path, text, words, named):
    if text is not None:
        (tmp_path / 'mine.csv').write_text(text, encoding='utf-8')
    code, out, err = here(f'verdict mine.csv {words}')
    assert (code, out, err.count('\n')) == (2, '', 1) and named in err
