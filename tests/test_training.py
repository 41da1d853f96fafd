"""System tests of training: processes that are stopped or killed, files that are damaged, runs that are repeated."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from normnotes.data import DataSet, load_data
from normnotes.models import Net, load_model, save_model
from normnotes.training import TrainConfig, fit

SETTINGS = {
    'sgd': {
        'epochs': 4,
        'batch_size': 32,
        'l1': 1e-4,
        'ema': 0.9,
        'label_smoothing': 0.1,
        'clip': 1.0,
    },
    'adamw': {
        'epochs': 4,
        'batch_size': 32,
        'optimizer': 'adamw',
        'lr': 0.01,
        'l1': 1e-3,
        'l1_mode': 'proximal',
        'l2': 0.01,
        'schedule': 'step',
        'step_size': 2,
    },
}
PROGRAM = """
import json, sys, time
import torch
from test_training import digest, few
from normnotes.models import Net
from normnotes.training import TrainConfig, fit
torch.set_num_threads(1)
settings, checkpoint, hold = json.loads(sys.argv[1]), sys.argv[2] or None, sys.argv[3]
finished = []
def say(row): finished.append(row['epoch'])
def wait(model, *_):  # in the first batch of epoch three, for the signal
    if hold and model.training and finished == [1, 2]:
        print('in epoch three', flush=True)
        time.sleep(120)
net = Net('bn', dropout=0.1, seed=0)
net.register_forward_hook(wait)
run = fit(net, few(), TrainConfig(device='cpu', **settings), checkpoint=checkpoint,
          progress='none' if checkpoint is None else 'log', on_epoch=say)
print('RESULT', digest(run), flush=True)
"""


def few() -> DataSet:
    data = load_data('digits')
    return DataSet.of('few', data.train[:640], data.test[:100], data.classes, data.source)


def digest(run) -> str:
    "One word for weights, history (but for the seconds) and predictions, to the last bit"
    rows = [{key: value for key, value in row.items() if key != 'seconds'} for row in run.history]
    sha = hashlib.sha256(json.dumps(rows).encode())
    for tensor in [
        *run.model.state_dict().values(),
        run.evaluation.predictions,
        run.evaluation.losses,
    ]:
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def start(settings: dict, checkpoint: Path | None = None, hold: str = '') -> subprocess.Popen:
    root = Path(__file__).resolve().parent
    path = os.pathsep.join([str(root.parent), str(root), os.environ.get('PYTHONPATH', '')])
    arguments = [json.dumps(settings), str(checkpoint or ''), hold]
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
    )


def result(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split('RESULT ')[1].strip()


def stop_in_epoch_three(process: subprocess.Popen, number: int) -> tuple[str, str]:
    "Wait until the process says that it is in epoch three, where it holds still, and send the signal"
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('in epoch three'):
            break
    process.send_signal(number)
    return process.communicate(timeout=300)


@pytest.fixture(scope='module')
def whole() -> dict[str, str]:
    "What runs that nobody stops end with, each in a process of its own"
    return {name: result(start(settings)) for name, settings in SETTINGS.items()}


def test_two_processes_agree(whole):
    assert result(start(SETTINGS['sgd'])) == whole['sgd']


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize('name', SETTINGS)
def test_kill_9_and_go_on(name, whole, tmp_path):
    path = tmp_path / 'run.safetensors'
    process = start(SETTINGS[name], path, hold='yes')
    out, _ = stop_in_epoch_three(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and 'RESULT' not in out
    assert result(start(SETTINGS[name], path)) == whole[name]


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize(
    'number, status', [(signal.SIGTERM, {143}), (signal.SIGINT, {-signal.SIGINT, 130, 1})]
)
def test_stopped_in_good_order(number, status, whole, tmp_path):
    path = tmp_path / 'run.safetensors'
    process = start(SETTINGS['sgd'], path, hold='yes')
    out, err = stop_in_epoch_three(process, number)
    assert process.returncode in status and 'RESULT' not in out, err
    assert f'of 4; {path} holds it' in err  # the user is told where the run can go on
    assert not [
        file for file in tmp_path.iterdir() if file.suffix == '.tmp' or '.tmp.' in file.name
    ]
    assert result(start(SETTINGS['sgd'], path)) == whole['sgd']


def train(path: Path | None, name: str = 'sgd', **changes):
    torch.set_num_threads(1)
    config = TrainConfig(
        device='cpu', **{**SETTINGS[name], 'epochs': 2, 'batch_size': 128, **changes}
    )
    return fit(Net('bn', dropout=0.1, seed=0), few(), config, checkpoint=path, progress='none')


def interrupted(path: Path, after: int) -> None:
    def leave(row):
        if row['epoch'] == after:
            raise KeyboardInterrupt

    config = TrainConfig(device='cpu', **{**SETTINGS['sgd'], 'epochs': 2, 'batch_size': 128})
    with pytest.raises(KeyboardInterrupt):
        fit(
            Net('bn', dropout=0.1, seed=0),
            few(),
            config,
            checkpoint=path,
            progress='none',
            on_epoch=leave,
        )


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: content[:-1],
        lambda content: content[:100],
        lambda content: b'',
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: b'\xff' * 16 + content[16:],
        lambda content: content.replace(b'epoch', b'EPOCH'),
    ],
)
def test_a_damaged_checkpoint_is_noticed(damage, tmp_path):
    path = tmp_path / 'run.safetensors'
    expected = digest(train(None))
    interrupted(path, after=2)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(
        UserWarning, match='damaged.*going on from run.safetensors.previous, which holds epoch 1'
    ):
        assert digest(train(path)) == expected
    for file in (path, path.with_name(path.name + '.previous')):
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match='damaged.*damaged.*training starts anew'):
        assert digest(train(path)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert digest(train(path)) == expected  # and the file is whole again


def test_a_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch):
    path = tmp_path / 'run.safetensors'
    interrupted(path, after=2)
    files = {file: file.read_bytes() for file in tmp_path.iterdir()}
    read = Path.read_bytes

    def fail(file):
        if file == path:
            raise OSError(24, 'Too many open files')
        return read(file)

    monkeypatch.setattr(Path, 'read_bytes', fail)
    with pytest.raises(OSError, match='Too many open files'):
        train(path)
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == files


def test_another_run_is_refused(tmp_path):
    path = tmp_path / 'run.safetensors'
    interrupted(path, after=1)
    before = path.read_bytes()
    for changes, words in (
        ({'lr': 0.01}, 'lr is .* there and 0.01 here'),
        ({'seed': 5}, 'seed is 0 there and 5 here'),
        ({'l1': 0.0}, 'l1 is 0.0001 there and 0.0 here'),
        ({'epochs': 3}, 'epochs is 2 there'),
    ):
        with pytest.raises(ValueError, match=words):
            train(path, **changes)
    assert path.read_bytes() == before


def test_normalization_is_kept(tmp_path):
    data = few()
    run = train(None, epochs=1)
    save_model(run.model, tmp_path / 'net.safetensors')
    notes = load_model(tmp_path / 'net.safetensors').notes
    assert notes == {'mean': list(data.mean), 'std': list(data.std), 'classes': list(data.classes)}


def test_a_checkpoint_holds_no_pickle(tmp_path):
    path = tmp_path / 'run.safetensors'
    train(path, epochs=1)
    from safetensors import safe_open

    with safe_open(path, 'pt') as file:
        state = json.loads(file.metadata()['state'])
        names = set(file.keys())
    assert state['epoch'] == 1 and len(state['history']) == 1
    assert {name.split('.')[0] for name in names} == {'model', 'average', 'optimizer'}


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_cuda_does_not_wait_each_step():
    data = few()
    config = TrainConfig(
        epochs=1, batch_size=16, l1=1e-4, clip=1.0, ema=0.9, device='cuda', compile=False
    )
    fit(Net('bn', seed=0), data, config, progress='none')  # warm
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            fit(Net('bn', seed=0), data, config, progress='none')
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert len(caught) < 30, len(
        caught
    )  # of 40 steps; what waits is the start and the end of the epoch


def test_a_resumed_run_is_compiled_if_the_whole_run_is(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        'normnotes.training._compile',
        lambda model, _, __, steps, *more: asked.append(steps) or model,
    )
    config = TrainConfig(epochs=4, batch_size=32, device='cpu')

    def stop(row):
        if row['epoch'] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            Net('bn', seed=0),
            few(),
            config,
            checkpoint=tmp_path / 'run',
            on_epoch=stop,
            progress='none',
        )
    fit(Net('bn', seed=0), few(), config, checkpoint=tmp_path / 'run', progress='none')
    assert len(asked) == 2 and asked[0] == asked[1]
