"""Training: steps by hand, runs that are stopped, killed or damaged, settings that are wrong."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normnotes.batches import Batches
from normnotes.data import DataSet, load_data
from normnotes.evaluation import evaluate
from normnotes.models import Net
from normnotes.penalties import l1_penalty, l2_penalty, penalized, percent_zero, soft_threshold_
from normnotes.training import DivergedError, TrainConfig, fit

SETTINGS = {
    'sgd': {'epochs': 4, 'batch_size': 32, 'l1': 1e-4, 'ema': 0.9, 'label_smoothing': 0.1},
    'adamw': {'epochs': 4, 'batch_size': 32, 'optimizer': 'adamw', 'lr': 0.01, 'l1': 1e-3}
    | {'l1_mode': 'proximal', 'l2': 0.01, 'schedule': 'step', 'step_size': 2},
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
def wait(model, *_):  # in the first batch of epoch three, for the signal
    if hold and model.training and finished == [1, 2]:
        print('in epoch three', flush=True)
        time.sleep(120)
net = Net('bn', dropout=0.1, seed=0)
net.register_forward_hook(wait)
run = fit(net, few(), TrainConfig(device='cpu', **settings), checkpoint=checkpoint,
          progress='log', on_epoch=lambda row: finished.append(row['epoch']))
print('RESULT', digest(run), flush=True)
"""


def few() -> DataSet:
    data = load_data('digits')
    return DataSet.of('few', data.train[:640], data.test[:100], data.classes, data.source)


def digest(run) -> str:
    "One word for weights, history (but for the seconds) and predictions, to the last bit."
    rows = [{key: row[key] for key in row if key != 'seconds'} for row in run.history]
    sha = hashlib.sha256(json.dumps(rows).encode())
    for tensor in [*run.model.state_dict().values(), run.evaluation.losses]:
        sha.update(tensor.contiguous().numpy().tobytes())
    return sha.hexdigest()


def start(name: str, checkpoint: Path | str = '', hold: str = '') -> subprocess.Popen:
    root = Path(__file__).resolve().parent
    path = os.pathsep.join([str(root.parent), str(root), os.environ.get('PYTHONPATH', '')])
    return subprocess.Popen(
        [sys.executable, '-c', PROGRAM, json.dumps(SETTINGS[name]), str(checkpoint), hold],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
    )


def result(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out.split('RESULT ')[1].strip()


def train(path: Path | None = None, stop_after: int = 0, seed: int = 0, **changes):
    def leave(row):
        if row['epoch'] == stop_after:
            raise KeyboardInterrupt

    torch.set_num_threads(1)
    settings = SETTINGS['sgd'] | {'epochs': 2, 'batch_size': 128, 'device': 'cpu'} | changes
    net = Net('bn', dropout=0.1, seed=seed)
    options = {'checkpoint': path, 'progress': 'none', 'on_epoch': leave}
    return fit(net, few(), TrainConfig(**settings), **options)


def test_penalties_and_their_gradients_by_hand():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([0.5, -2.0]).view(2, 1, 1, 1))
    penalty = l1_penalty(net)
    penalty.backward()
    assert penalty.item() == 2.5 and net[0].weight.grad.flatten().tolist() == [1, -1]
    assert net[0].bias.grad is None and net[1].weight.grad is None
    assert l2_penalty(net).item() == (0.25 + 4) / 2
    assert l1_penalty(net, 'all').item() == pytest.approx(4.5 + net[0].bias.abs().sum().item())
    soft_threshold_(penalized(net), 1.0)
    assert net[0].weight.flatten().tolist() == [0, -1]
    assert percent_zero(net) == 50


@pytest.mark.parametrize(
    'extra',
    [{}, {'l1': 1e-3}, {'l1': 0.04, 'l1_mode': 'proximal'}, {'l2': 0.1}, {'label_smoothing': 0.2}],
    ids=str,
)
def test_steps_of_fit_by_hand(extra):
    torch.set_num_threads(1)
    data = few()
    small = DataSet.of('small', data.train[:128], data.test, data.classes, data.source)
    common = {'epochs': 2, 'batch_size': 32, 'lr': 0.02, 'nesterov': False, 'augment': 'none'}
    config = TrainConfig(schedule='step', step_size=1, device='cpu', **common, **extra)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a penalty larger than the loss
        run = fit(Net('bn', dropout=0.0, seed=0), small, config, progress='none')
    net = Net('bn', dropout=0.0, seed=0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    batches = Batches(small.train, 32, small.mean, small.std, augment='none', seed=0)
    for epoch, rate in ((1, 0.02), (2, 0.002)):
        optimizer.param_groups[0]['lr'] = rate
        for x, y in batches.epoch(epoch):
            loss = F.cross_entropy(net(x), y, label_smoothing=config.label_smoothing)
            if config.l1_mode == 'penalty':
                loss = loss + config.l1 * l1_penalty(net)
            optimizer.zero_grad()
            (loss + config.l2 * l2_penalty(net)).backward()
            optimizer.step()
            if config.l1_mode == 'proximal':
                soft_threshold_(penalized(net), rate * config.l1)
    for ours, by_hand in zip(run.model.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, by_hand, atol=1e-4)
    assert (percent_zero(run.model) > 2) == (config.l1_mode == 'proximal')
    assert run.evaluation.accuracy == pytest.approx(evaluate(net, small).accuracy, abs=1)


@pytest.fixture(scope='module')
def whole() -> dict[str, str]:
    "What runs that nobody stops end with, each in a process of its own."
    return {name: result(start(name)) for name in SETTINGS}


@pytest.mark.skipif(os.name == 'nt', reason='POSIX signals')
@pytest.mark.parametrize(
    'name, number', [('sgd', signal.SIGKILL), ('adamw', signal.SIGKILL), ('sgd', signal.SIGTERM)]
)
def test_a_stopped_process_resumes_to_the_same_bits(name, number, whole, tmp_path):
    path = tmp_path / 'run.safetensors'
    process = start(name, path, hold='yes')
    assert process.stdout is not None
    while not process.stdout.readline().startswith('in epoch three'):
        assert process.poll() is None, process.communicate()[1]
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode and 'RESULT' not in out
    assert number == signal.SIGKILL or str(path) in err  # where to resume
    assert len(list(tmp_path.iterdir())) == 2  # two epochs, and nothing half-written
    assert result(start(name, path)) == whole[name]


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: content[:100],
        lambda content: b'',
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: content.replace(b'epoch', b'EPOCH'),
    ],
    ids=['cut', 'empty', 'bit', 'header'],
)
def test_a_damaged_checkpoint_is_noticed(damage, tmp_path):
    path, previous = tmp_path / 'run', tmp_path / 'run.previous'
    expected = digest(train())
    with pytest.raises(KeyboardInterrupt):
        train(path, stop_after=2)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match='resuming from run.previous'):
        assert digest(train(path)) == expected
    for file in (path, previous):
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match='starts again'):
        assert digest(train(path)) == expected
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert digest(train(path)) == expected  # and the file is whole again


def test_another_run_is_refused(tmp_path):
    path = tmp_path / 'run'
    with pytest.raises(KeyboardInterrupt):
        train(path, stop_after=1)
    before = path.read_bytes()
    for changes in ({'lr': 0.01}, {'l1': 0.0}, {'epochs': 3}, {'augment': 'none'}):
        with pytest.raises(ValueError, match=f'{next(iter(changes))} is .* there and'):
            train(path, **changes)
    assert path.read_bytes() == before
    with pytest.warns(UserWarning, match='weights'):  # the net that is given is not the one stored
        assert digest(train(path, seed=1)) == digest(train())


@pytest.mark.parametrize(
    'wrong',
    [{'optimizer': 'adam'}, {'lr': -1}, {'lr': None}, {'momentum': 1}, {'epochs': 0}]
    + [{'batch_size': 2.5}, {'l1': float('nan')}, {'epochs': '20'}, {'nesterov': 'no'}]
    + [{'device': 'gpu'}, {'learning_rate': 0.1}, {'augment': True}, {'warmup': 5}],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_named(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ValueError) as caught:
        TrainConfig.from_dict(wrong)
    assert (name if name == 'learning_rate' else str(value)) in str(caught.value)


def test_a_diverged_run_says_where():
    config = TrainConfig(epochs=2, lr=1e6, momentum=0.0, schedule='constant', device='cpu')
    net = Net('none', seed=0)
    with pytest.raises(DivergedError) as caught:
        fit(net, few(), config, progress='none')
    assert caught.value.epoch == 1 and caught.value.step in (2, 3)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # from a worker
    assert not net.training and all(p.grad is None for p in net.parameters())
