"""What does not teach about normnotes.models: a light import, files that are broken or foreign."""

import json
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import fx, nn

from normnotes.models import CifarNet, Net, load, save


def test_import_loads_torch_and_nothing_heavy():
    """Whoever wants the network alone does not wait for plots, statistics or notebooks."""

    def modules(program):
        program += '; import sys; print(*sys.modules)'
        output = subprocess.run(
            [sys.executable, '-c', program], capture_output=True, text=True, check=True
        ).stdout
        return {name.split('.')[0] for name in output.split()}

    loaded = modules('from normnotes.models import Net; Net("gn")')
    assert {'torch', 'normnotes'} <= loaded
    heavy = {
        'matplotlib',
        'pandas',
        'torchvision',
        'sklearn',
        'scipy',
        'safetensors',
        'tqdm',
        'fastcore',
        'joblib',
        'PIL',
        'dask',
        'IPython',
        'nbdev',
    }
    assert not (loaded - modules('import torch')) & heavy  # torch itself may load tqdm
    assert not loaded & {
        'matplotlib',
        'pandas',
        'torchvision',
        'sklearn',
        'scipy',
        'safetensors',
        'fastcore',
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'net.safetensors'
    save(Net('gn', seed=0), path, mean=(0.13,))
    return path


def rewrite(path, change):
    """Save the file's tensors again with its description changed by `change`."""
    with safe_open(path, 'pt') as file:
        about = json.loads(file.metadata()['normnotes'])
    change(about)
    save_file(load_file(path), path, metadata={'normnotes': json.dumps(about)})


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no weight file .*save\(model, path\) writes one'):
        load(tmp_path / 'none.safetensors')
    with pytest.raises(FileNotFoundError):
        load(tmp_path)


def test_the_file_may_change_after_loading(saved):
    net = load(saved)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    size = saved.stat().st_size
    with open(saved, 'r+b') as file:
        file.write(b'\xff' * size)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize('dropout', [0.05, 0.5])
def test_tracing_in_training_mode(dropout):
    net = Net('gn', dropout=dropout, seed=0).train()
    traced = fx.symbolic_trace(net)
    x = torch.rand(4, 1, 28, 28)
    answers = []
    for model in (net, traced):
        torch.manual_seed(0)
        answers.append(model(x))
    assert torch.equal(*answers)
    assert not torch.equal(traced(x), answers[0])  # it still drops, anew each time


@pytest.mark.parametrize('keep', [0, 4, 100, -1, -4000])
def test_cut_short(saved, keep):
    data = saved.read_bytes()
    saved.write_bytes(data[:keep])
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        load(saved)


def test_garbage_and_pickles_are_refused_and_not_run(tmp_path):
    path = tmp_path / 'net.safetensors'
    path.write_bytes(b'\xff' * 4096)
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        load(path)

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / 'ran'), 'w'))

    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        load(path)
    torch.save({'trap': 1}, path)
    with pytest.raises(ValueError, match='not a whole safetensors file'):
        load(path)
    assert not (tmp_path / 'ran').exists()


def test_foreign_file(tmp_path):
    path = tmp_path / 'other.safetensors'
    save_file(Net().state_dict(), path)
    with pytest.raises(ValueError, match=r'no normnotes configuration; build the network yourself'):
        load(path)


@pytest.mark.parametrize(
    'change, words',
    [
        (lambda about: about['config'].update(arch='eva99'), 'eva99'),
        (lambda about: about['config'].update(norm='weight'), 'weight'),
        (lambda about: about['config'].update(colour=3), 'colour'),
        (lambda about: about['config'].update(num_classes=11), 'size mismatch'),
        (lambda about: about['config'].update(arch='eva8'), 'C1'),
        (lambda about: about['config'].update(arch={'rows': {}}), 'dropout'),
        (lambda about: about['config'].pop('norm') and about.pop('notes'), 'notes'),
        (lambda about: about.update({'class': 'ResNet'}), 'ResNet'),
        (lambda about: about.update(config=None), 'cannot build'),
    ],
)
def test_unknown_configuration(saved, change, words):
    rewrite(saved, change)
    with pytest.raises(
        ValueError, match=f'written by normnotes .*cannot build .*{words}|{words}'
    ) as error:
        load(saved)
    assert str(saved) in str(error.value)


def test_description_that_is_no_json(saved):
    save_file(load_file(saved), saved, metadata={'normnotes': '{'})
    with pytest.raises(ValueError, match='an unknown version'):
        load(saved)


def test_huge_claim_costs_no_memory(saved):
    """A description is compared with the tensors before any of its layers takes memory."""

    def change(about):
        about['config']['in_channels'] = 10**9

    rewrite(saved, change)
    with pytest.raises(ValueError, match='cannot build'):
        load(saved)


def test_failed_save_leaves_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()
    import safetensors.torch

    def fail(tensors, path, metadata):
        path.write_bytes(b'half a file')
        raise OSError('disk full')

    monkeypatch.setattr(safetensors.torch, 'save_file', fail)
    with pytest.raises(OSError, match='disk full'):
        save(CifarNet(), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_altered_networks_are_not_saved_as_something_else(tmp_path):
    path = tmp_path / 'net.safetensors'
    altered = Net('gn')
    altered.C1.norm = nn.GroupNorm(1, 10)
    with pytest.raises(ValueError, match='no longer those of its configuration'):
        save(altered, path)

    class Mine(Net):
        pass

    with pytest.raises(TypeError, match='not Mine'):
        save(Mine(), path)
    with pytest.raises(ValueError, match='a norm that is a function'):
        save(Net(nn.BatchNorm2d), path)
    assert not path.exists()


def test_compiled_network_is_saved_as_itself(tmp_path):
    path = tmp_path / 'net.safetensors'
    net = Net('ln', seed=1)
    save(torch.compile(net, backend='eager'), path)
    assert torch.equal(load(path).C1.conv.weight, net.C1.conv.weight)
