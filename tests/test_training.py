"""Training: steps by hand, runs that are stopped or damaged, settings that are wrong."""

import hashlib
import json
import pickle
import signal
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from normnotes.batches import Batches
from normnotes.data import DataSet, load_data
from normnotes.evaluation import evaluate
from normnotes.models import Net
from normnotes.penalties import l2_penalty, penalized, percent_zero, soft_threshold_
from normnotes.training import DivergedError, TrainConfig, fit

SETTINGS = {
    'sgd': {'l1': 1e-4, 'label_smoothing': 0.1},
    'adamw': {'optimizer': 'adamw', 'lr': 0.01, 'l1': 1e-3, 'l1_mode': 'proximal', 'l2': 0.01}
    | {'schedule': 'step', 'step_size': 2},
}


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


def train(path: Path | None = None, stop_after=0, by=signal.SIGINT, name='sgd', seed=0, **changes):
    "Three epochs; a signal may come after one of them."

    def leave(row):
        if row['epoch'] == stop_after:
            signal.raise_signal(by)

    torch.set_num_threads(1)
    settings = SETTINGS[name] | {'epochs': 3, 'batch_size': 128, 'device': 'cpu'} | changes
    net = Net('bn', dropout=0.1, seed=seed)
    options = {'checkpoint': path, 'progress': 'log', 'on_epoch': leave}
    return fit(net, few(), TrainConfig(**settings), **options)


@pytest.fixture(scope='module')
def whole() -> dict[str, str]:
    "What runs that nobody stops end with."
    return {name: digest(train(name=name)) for name in SETTINGS}


@pytest.mark.parametrize(
    ('name', 'number'), [('sgd', signal.SIGINT), ('adamw', signal.SIGINT), ('sgd', signal.SIGTERM)]
)
def test_a_stopped_run_resumes_to_the_same_bits(name, number, whole, tmp_path, capsys):
    path = tmp_path / 'run.safetensors'
    with pytest.raises(KeyboardInterrupt):
        train(path, stop_after=2, by=number, name=name)
    assert str(path) in capsys.readouterr().err  # where to resume
    assert len(list(tmp_path.iterdir())) == 2  # two epochs, and nothing half-written
    assert digest(train(path, name=name)) == whole[name]


@pytest.mark.parametrize(
    'extra', [{'l1': 0.04, 'l1_mode': 'proximal'}, {'l2': 0.1}, {'label_smoothing': 0.2}], ids=str
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
            optimizer.zero_grad()
            (loss + config.l2 * l2_penalty(net)).backward()
            optimizer.step()
            if config.l1_mode == 'proximal':
                soft_threshold_(penalized(net), rate * config.l1)
    for ours, by_hand in zip(run.model.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, by_hand, atol=1e-4)
    assert (percent_zero(run.model) > 2) == (config.l1_mode == 'proximal')
    assert run.evaluation.accuracy == pytest.approx(evaluate(net, small).accuracy, abs=1)


def test_a_damaged_checkpoint_is_noticed(whole, tmp_path):
    path, previous = tmp_path / 'run', tmp_path / 'run.previous'
    with pytest.raises(KeyboardInterrupt):
        train(path, stop_after=2)

    def damage(file):
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])  # one bit

    damage(path)
    with pytest.warns(UserWarning, match='resuming from run.previous'):
        assert digest(train(path)) == whole['sgd']
    for file in (path, previous):
        damage(file)
    with pytest.warns(UserWarning, match='starts again'):
        assert digest(train(path)) == whole['sgd']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert digest(train(path)) == whole['sgd']  # and the file is whole again


def test_another_run_is_refused(whole, tmp_path):
    path = tmp_path / 'run'
    with pytest.raises(KeyboardInterrupt):
        train(path, stop_after=1)
    before = path.read_bytes()
    for changes in ({'lr': 0.01}, {'l1': 0.0}, {'epochs': 4}, {'augment': 'none'}):
        with pytest.raises(ValueError, match=f'{next(iter(changes))} is .* there and'):
            train(path, **changes)
    assert path.read_bytes() == before
    with pytest.warns(UserWarning, match='weights'):  # the net that is given is not the one stored
        assert digest(train(path, seed=1)) == whole['sgd']


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
