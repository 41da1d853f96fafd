"""What must hold of the networks, and is not shown in their chapter."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import fx, nn

from normnotes import models
from normnotes.dropout import Dropout
from normnotes.models import CifarNet, Layer, Net, conv3x3
from normnotes.summary import param_table

pytestmark = pytest.mark.filterwarnings('ignore:instance norm right before')
TABLE = {'A': conv3x3(4), 'B': conv3x3(4, add='A'), 'C': conv3x3(4, add='A')}
TABLE |= {'D': models.Layer('conv', padding=1, depthwise=True, steps=('norm',))}
ADDED = models.Arch(TABLE | {'GAP': models.global_avg_pool(), 'out': models.conv1x1(0)})
SIZES = {(Net, 'eva4'): 8286, (Net, 'eva8'): 9910}
SIZES |= {(CifarNet, 'shape'): 47976, (CifarNet, 'era'): 29472}


@pytest.mark.parametrize('make, arch', SIZES)
def test_sizes_and_weights_do_not_depend_on_the_norm(make, arch):
    state, found = torch.get_rng_state(), []
    for norm in ['bn', 'ln', 'gn', 'in', 'group', 'gn:2', nn.BatchNorm2d]:
        model = make(norm, arch=arch, seed=3)
        assert models.count_params(model) == SIZES[make, arch]
        found.append(torch.cat([p.flatten() for p in model.parameters() if p.ndim == 4]))
    assert all(torch.equal(found[0], weights) for weights in found)
    assert torch.equal(state, torch.get_rng_state())  # a seed leaves the global generator alone
    s, c = model.smallest, model.input_shape[0]
    assert model.eval()(torch.zeros(2, c, s, s + 9)).shape == (2, 10)
    for bad in [(2, c, s, s - 1), (2, c + 1, 32, 32), (c, 32, 32)]:
        with pytest.raises(ValueError, match=rf'{c}, H, W.* {s}.*{bad[-1]}\)'):
            model(torch.zeros(bad))


def test_a_depthwise_row_keeps_channels_apart():
    conv, x = Net('none', arch=ADDED, seed=0).D.conv, torch.rand(1, 4, 6, 6)
    y, x[:, 2] = conv(x), 0
    assert [bool(c.any()) for c in (conv(x) - y)[0]] == [False, False, True, False]
    assert conv.weight.shape == (4, 1, 3, 3) and 0.3 < conv.weight.abs().max() <= 1 / 3


def test_dropout_in_place_is_dropout(p=0.05):
    layer, x = Dropout(p), torch.rand(40, 8, 14, 14) + 1
    for images in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3), x[..., ::2]):
        leaf = images.clone().requires_grad_()
        results = []
        for overwrite in (False, True):
            before = leaf + 0
            torch.manual_seed(1)
            y = layer(before, overwrite)
            assert (y is before) == overwrite
            towards = torch.rand(y.shape, requires_grad=True)
            (grad,) = torch.autograd.grad(y, leaf, towards, create_graph=True)
            assert torch.equal(grad, towards * (1 / (1 - p)) * (y != 0))
            assert torch.equal(y, leaf * (1 / (1 - p)) * (y != 0))
            assert abs((y == 0).float().mean() - p) < 4 * (p / y.numel()) ** 0.5
            results.append(y)
        assert torch.equal(*results)
    assert torch.equal(layer.eval()(x, True), x)


@pytest.mark.parametrize('norm', ['bn', 'gn', 'in', 'none'])
@pytest.mark.parametrize('arch', ['eva4', 'eva4-norm-first', ADDED])
def test_derivatives_of_both_orders_through_dropout_in_place(norm, arch, monkeypatch):
    net = Net(norm, arch=arch, dropout=0.05, seed=0).double()
    x = torch.rand(4, 1, 12, 12, dtype=torch.double, requires_grad=True)
    plain, found = Dropout.forward, []
    for forward in (plain, lambda self, x, overwrite: plain(self, x)):
        monkeypatch.setattr(Dropout, 'forward', forward)
        torch.manual_seed(0)
        loss, ends = net(x).logsumexp(1).sum(), [x, *net.parameters()]
        first = torch.autograd.grad(loss, ends, retain_graph=True)
        slope = torch.autograd.grad(loss, x, create_graph=True)[0].square().sum()
        found.append([*first, *torch.autograd.grad(slope, ends)])
    assert all(map(torch.equal, *found))


def test_tracers_and_hooks_meet_the_same_numbers():
    net, x, answers, seen = Net('gn', dropout=0.05), torch.rand(4, 1, 28, 28), [], []
    for model in (net, fx.symbolic_trace(net)):
        torch.manual_seed(0)
        answers.append(model(x))
    net.C1.norm.register_forward_hook(lambda layer, x, y: seen.append((y, y.clone())))
    assert torch.equal(*answers) and not torch.equal(net(x), answers[0])  # it drops each time
    assert torch.equal(*seen[0])


@pytest.mark.parametrize('make, arch', list(SIZES)[:3])
def test_receptive_fields_are_those_of_the_gradient(make, arch, monkeypatch):
    net, found = make(arch=arch, seed=0).eval(), {}
    table = {row.name: row.sees[0] for row in param_table(net, depth=1)}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda layer, x, y, name=name: found.update({name: y}))
    for p in net.parameters():
        p.data.abs_()  # nothing cancels
    x = torch.ones(1, net.input_shape[0], 96, 96, requires_grad=True)
    with monkeypatch.context() as patch:  # a maximum passes one gradient, an average all
        patch.setattr(nn.MaxPool2d, 'forward', lambda pool, x: nn.functional.avg_pool2d(x, 2))
        net(x)
    for name in list(table)[: list(table).index('GAP')]:
        middle = found[name].shape[-1] // 2
        number = found[name][:, :, middle, middle].sum()
        (grad,) = torch.autograd.grad(number, x, retain_graph=True)
        assert int((grad[0, 0].sum(1) > 0).sum()) == table[name]


def test_errors_name_the_value_and_what_is_allowed():
    def with_row(**rows):
        return Net(arch=models.Arch({'A': conv3x3(4)} | rows))

    for build, names in {
        lambda: Net('gn:4'): ['4', '10'],
        lambda: with_row(B=Layer('dense')): ['dense', 'conv'],
        lambda: with_row(B=conv3x3(4, ('tanh',))): ['tanh', 'relu'],
        lambda: with_row(B=conv3x3(4, ('norm', 'relu', 'norm'))): ['norm', 'once'],
        lambda: with_row(B=conv3x3(4, ('relu',), add='A')): ['norm', 'A'],
        lambda: with_row(B=conv3x3(4, add='C')): ['C', 'A'],
        lambda: param_table(nn.Linear(2, 2)): ['input_shape'],
        lambda: models.make_model('resnet'): ['resnet', 'net-eva8'],
    }.items():
        with pytest.raises(ValueError) as error:
            build()
        assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize('norm', ['gn:2', 'in', 'bn'])
def test_a_saved_network_comes_back(norm, tmp_path):
    path, model = tmp_path / 'net', CifarNet(norm, arch='era', num_classes=3, dropout=0.2)
    x = torch.randn(2, 3, 32, 32)
    model(x)  # moves the running statistics away from where they start
    models.save_model(model, path, mean=[0.13])
    again = models.load_model(path)
    assert (type(again), repr(again), again.training) == (CifarNet, repr(model), False)
    assert (again.config, again.notes) == (model.config, {'mean': [0.13]})
    assert torch.equal(again(x), model.eval()(x)) and list(tmp_path.iterdir()) == [path]
    again.train()(x).sum().backward()  # and it trains on
    again.C1.norm = nn.GroupNorm(1, 8)
    for model in (again, Net(nn.BatchNorm2d), Net(arch=ADDED)):
        with pytest.raises(ValueError, match='as it was built'):
            models.save_model(model, path)


def test_files_that_are_damaged_foreign_or_old(tmp_path):
    path = tmp_path / 'net.safetensors'
    models.save_model(Net('gn:2'), path)
    whole, tensors = path.read_bytes(), load_file(path)
    torch.save({'trap': 1}, path)  # a pickle is not opened
    for content in (path.read_bytes(), b'', whole[:100], whole[:-1], whole[:-4] + b'oops'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(path)):
            models.load_model(path)
    path.write_bytes(whole)
    with safe_open(path, 'pt') as file:
        about = json.loads(file.metadata()['normnotes'].partition(' ')[2])
    for changes, word in [
        ({'config': about['config'] | {'arch': 'eva99'}}, 'eva99'),
        ({'config': about['config'] | {'num_classes': 11}}, 'size mismatch'),
        ({'config': {'colour': 3}}, 'colour'),
    ]:
        save_file(tensors, path, metadata={'normnotes': json.dumps(about | changes)})
        with pytest.raises(ValueError, match=word):
            models.load_model(path)
    about['config'] |= {'norm': 'gn', 'groups': 2}  # as earlier versions wrote it
    save_file(tensors, path, metadata={'normnotes': json.dumps(about)})
    assert models.load_model(path).C1.norm.num_groups == 2
