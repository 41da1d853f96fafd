"""Surgery on models: swap, freeze, recompute, protect and fold, each against torch in float64."""

import copy
import itertools
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.convnext import LayerNorm2d as PixelNorm
from torchvision.ops import FrozenBatchNorm2d

from normnotes import norms
from normnotes.norms import BatchNorm2d
from normnotes.sets import NORMS
from normnotes.surgery import (
    Report,
    checkpoint_safe,
    fold_batchnorm,
    fold_batchnorms,
    freeze_norms,
    moved,
    recompute_stats,
    swap_norms,
    thaw_norms,
)

KINDS = [kind for kind, row in NORMS.items() if row.layer]
AnyBatchNorm = nn.modules.batchnorm._BatchNorm


def random(*shape, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)


def small_net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), BatchNorm2d(8)
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).double()
    for step in range(5):
        net(3 * random(8, 3, 8, 8, seed=step))
    return net


class BatchNormAct2d(nn.BatchNorm2d):
    "A norm with an activation inside, as timm has it."

    def forward(self, x):
        return super().forward(x).relu()


class LayerNormAct2d(nn.LayerNorm):
    pass


# Swapping


def test_swap_keeps_parameters_and_refuses_before_it_changes_anything():
    norm = nn.BatchNorm2d(6, eps=0.25).double()
    net = nn.Sequential(norm, nn.Sequential(norm, nn.InstanceNorm2d(6)), nn.LayerNorm(3)).eval()
    assert swap_norms(net) is net and net[0] is net[1][0] and type(net[2]) is nn.LayerNorm
    assert net[0].weight is norm.weight and (net[0].eps, net[0].training) == (0.25, False)
    assert net[0].num_groups == 3 and net[1][1].weight is None
    net = nn.Sequential(nn.BatchNorm2d(8), nn.Sequential(nn.BatchNorm2d(10)))
    with pytest.raises(ValueError, match=r'1\.0: groups=4 .* 1, 2, 5 or 10'):
        swap_norms(net, groups=4)
    assert type(net[0]) is nn.BatchNorm2d
    with pytest.warns(UserWarning, match='Sequential'):
        swap_norms(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


@pytest.mark.parametrize('norm', [BatchNormAct2d(4), LayerNormAct2d(4)])
def test_norms_that_do_more_are_refused_by_name(norm):
    net = nn.Sequential(nn.BatchNorm2d(4), norm)
    with pytest.raises(TypeError, match=f'1 is a {type(norm).__name__}'):
        swap_norms(net)
    assert type(net[0]) is nn.BatchNorm2d


def test_hooks_and_parametrizations_are_not_lost_in_silence():
    hooked, made = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    hooked.register_forward_hook(lambda layer, inputs, output: output)
    nn.utils.parametrize.register_parametrization(made, 'weight', nn.Identity())
    for norm in (hooked, made):
        with pytest.raises((ValueError, TypeError), match='0'):
            swap_norms(nn.Sequential(norm))


@pytest.mark.parametrize('kind', KINDS)
def test_swap_knows_every_norm_of_the_book(kind):
    net = swap_norms(
        nn.Sequential(nn.BatchNorm2d(4)), lambda c: norms.make_norm(kind, c, impl='scratch')
    )
    assert type(net[0]) is getattr(norms, NORMS[kind].layer)
    assert type(swap_norms(net, 'in')[0]) is nn.InstanceNorm2d


@pytest.mark.parametrize('dims, shape', [('1d', (5,)), ('2d', (5, 3)), ('3d', (5, 3, 2))])
@pytest.mark.parametrize('kind', ['gn', 'ln', 'in', 'bn', 'rms', 'lnc'])
def test_every_number_of_dimensions(dims, shape, kind):
    x = random(4, 8, *shape)
    old = getattr(nn, f'BatchNorm{dims}')(8).double()
    nn.init.normal_(old.weight)
    new = swap_norms(nn.Sequential(old), kind)
    y = new(x)
    assert y.shape == x.shape and new[0].weight is old.weight
    if kind == 'gn':
        expected = nn.functional.group_norm(x, 2 if dims == '1d' else 4, old.weight, old.bias)
    elif kind == 'in':
        expected = nn.functional.instance_norm(x, weight=old.weight, bias=old.bias)
    elif kind == 'bn':
        expected = old(x)
    else:
        return
    torch.testing.assert_close(y, expected)


def test_a_mixed_model_and_its_report():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8), nn.BatchNorm1d(8)
    )
    net.append(nn.LayerNorm(8))
    report = Report()
    swap_norms(net, 'gn', report=report)
    found = {c.layer: c.action for c in report}
    assert found == {'1': 'swapped', '4': 'swapped', '5': 'kept'}
    assert net[4].num_groups == 2 and all(c.layer in str(report) for c in report)
    y = net[:5](random(6, 3, 3, 3, dtype=torch.float32))
    assert y.std(0).min() > 0.01  # one channel per group would make every output beta


@pytest.mark.parametrize('kind', ['in', 'gn:8'])
def test_one_number_per_set_behind_a_linear_is_refused(kind):
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8))
    pooled = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.BatchNorm1d(8))
    with pytest.raises(ValueError, match='2: '):
        swap_norms(pooled, kind)
    assert swap_norms(nn.BatchNorm1d(4)).num_groups == 1
    with pytest.raises(ValueError, match=r'1: .*Linear'):
        swap_norms(net, kind)
    assert type(net[1]) is nn.BatchNorm1d


def test_frozen_batch_norm_becomes_one_that_gives_the_same():
    frozen = FrozenBatchNorm2d(4).double()
    for b in frozen.buffers():
        b.copy_(random(4).abs() + 0.5)
    x = random(3, 4, 5, 5)
    net = swap_norms(nn.Sequential(frozen), 'bn').eval()
    assert type(net[0]) is nn.BatchNorm2d
    torch.testing.assert_close(net(x), frozen(x))
    gn = swap_norms(nn.Sequential(frozen), 'gn')[0]
    torch.testing.assert_close(gn.weight, nn.Parameter(frozen.weight))


def test_the_norm_of_each_pixel_both_ways():
    x, pixel = random(2, 6, 3, 3), PixelNorm(6, eps=0.1).double()
    nn.init.normal_(pixel.weight)
    ours = swap_norms(nn.Sequential(pixel), 'lnc')
    torch.testing.assert_close(ours(x), pixel(x))
    back = swap_norms(ours, lambda c: PixelNorm(c, eps=0.1))
    torch.testing.assert_close(back(x), pixel(x))
    assert type(back[0]) is PixelNorm and type(swap_norms(back, 'bn')[0]) is nn.BatchNorm2d


def test_calibrated_channels_have_the_old_mean_and_spread():
    net, x = small_net(), 3 * random(64, 3, 8, 8, seed=9)
    wanted = [torch.var_mean(net.eval()[:k](x), (0, 2, 3)) for k in (2, 5)]
    report = Report()
    swap_norms(net, 'gn', calibrate=x.split(30), report=report)
    for k, (var, mean) in zip((2, 5), wanted, strict=True):
        torch.testing.assert_close(torch.var_mean(net[:k](x), (0, 2, 3)), (var, mean))
    assert len(report) == 2
    for kind, batches in (('gn', []), ('bn', [x])):
        with pytest.raises(ValueError):
            swap_norms(small_net(), kind, calibrate=batches)


# Freezing


@pytest.mark.parametrize('gains', [True, False])
def test_frozen_norms_stay_through_training_copies_and_files(gains):
    net = small_net().train()
    before, keys = copy.deepcopy(net.state_dict()), list(net.state_dict())
    freeze_norms(net, gains=gains)
    for model in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert list(model.state_dict()) == keys
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        model(random(8, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        changed = set(moved(before, model.state_dict()))
        kinds = {'1.weight', '1.bias', '4.weight', '4.bias'}
        assert changed & kinds == (set() if gains else kinds)
        assert not any('running' in k or 'tracked' in k for k in changed) and '0.weight' in changed
    thaw_norms(net)
    assert net[1].training and net[1].weight.requires_grad
    net(random(8, 3, 8, 8))
    assert '1.running_mean' in moved(before, net.state_dict())


def test_freezing_twice_and_thawing_bring_back_what_was():
    net = small_net()
    net[1].eval().weight.requires_grad_(False)
    thaw_norms(freeze_norms(freeze_norms(net)))
    assert not net[1].training and not net[1].weight.requires_grad and net[1].bias.requires_grad
    assert net[4].training and thaw_norms(net) is net


def test_gains_frozen_later_and_weights_loaded_into_a_frozen_model_thaw_as_well():
    net = freeze_norms(freeze_norms(small_net(), gains=False))
    assert not net[1].weight.requires_grad
    with pytest.raises(ValueError, match='thaw_norms'):
        swap_norms(net)
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    assert all(p.requires_grad for p in thaw_norms(net).parameters())


def test_only_norms_are_frozen():
    made = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 1))
    net = freeze_norms(nn.Sequential(made, nn.LocalResponseNorm(2))).train()
    assert all(m.training for m in net.modules())


def test_moved_sees_one_bit_and_refuses_to_compare_a_thing_with_itself():
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    assert moved(before, net.state_dict()) == {}
    net[1].running_mean[2] = torch.nextafter(net[1].running_mean[2], torch.tensor(9.0).double())
    assert list(moved(before, net.state_dict())) == ['1.running_mean']
    assert moved(before, {})['0.weight'] == float('inf')
    with pytest.raises(ValueError, match=r'0\.weight'):
        moved(net.state_dict(), net.state_dict())


# Statistics


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_recomputed_statistics_do_not_depend_on_the_batches(sizes):
    data = random(sum(sizes), 3, 2, 2, seed=len(sizes)) + 5
    for layer in (nn.BatchNorm2d(3), BatchNorm2d(3)):
        model = nn.Sequential(layer, nn.Dropout(0.5)).double().eval()
        recompute_stats(model, [(batch, None) for batch in data.split(sizes)])
        var, mean = torch.var_mean(data, (0, 2, 3))
        torch.testing.assert_close((layer.running_mean, layer.running_var), (mean, var))
        assert layer.num_batches_tracked.item() == len(sizes)
        assert (layer.training, layer.track_running_stats) == (False, True)
    with pytest.raises(ValueError, match='batches'):
        recompute_stats(model, [])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.unused = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, a, b):
        return self.norm(a + b)


def test_batches_of_any_kind_and_the_report():
    x = random(20, 3)
    for batch in ({'a': x, 'b': x}, (x, x), (x, x, 'a label'), lambda model: model(x, x)):
        model, report = TwoInputs().double(), Report()
        recompute_stats(model, [batch], report=report)
        torch.testing.assert_close(model.norm.running_mean, 2 * x.mean(0))
        assert [(c.layer, c.action) for c in report] == [('norm', 'recomputed'), ('unused', 'kept')]
        assert model.unused.running_mean.abs().max() == 0
    with pytest.raises(ValueError, match='needs b; give data as'):
        recompute_stats(model, [x])
    frozen = freeze_norms(TwoInputs().double())
    recompute_stats(frozen, [{'a': x, 'b': x}])
    assert frozen.norm.running_mean.abs().max() == 0


def test_bad_batches_replace_nothing_and_errors_of_the_model_name_the_layer():
    net = small_net()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match='1 got NaN'):
        recompute_stats(net, [random(2, 3, 8, 8) * float('nan')])
    assert moved(before, net.state_dict()) == {}

    class Broken(nn.Sequential):
        def forward(self, x):
            raise TypeError('my own')

    with pytest.raises(ValueError, match=r'the model \(Broken\) raised TypeError: my own'):
        recompute_stats(Broken(nn.BatchNorm1d(3)), [random(2, 3)])


def test_containers_with_norm_in_their_name_are_walked_through():
    from torchvision.ops import Conv2dNormActivation

    net = swap_norms(nn.Sequential(Conv2dNormActivation(3, 8)))
    assert type(net[0][1]) is nn.GroupNorm


PROCESS = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from normnotes.surgery import recompute_stats

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
data = torch.load(f'{folder}/data.pt')
part = [data[:7], data[7:10]] if rank == 0 else [data[10:]]
layer = nn.BatchNorm1d(3).double()
recompute_stats(layer, part)
torch.save(layer.state_dict(), f'{folder}/{rank}.pt')
for batches in (part if rank else [], []):  # one process without data; then none has any
    try:
        recompute_stats(layer, batches)
    except ValueError:
        assert batches == [] and layer.num_batches_tracked == 1, rank
dist.destroy_process_group()
"""


def test_two_processes_pool_all_that_both_have_seen(tmp_path):
    import subprocess

    data = random(37, 3) * 2 + 1e4
    torch.save(data, tmp_path / 'data.pt')
    command = [sys.executable, '-c', PROCESS]
    both = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [p.wait(timeout=120) for p in both] == [0, 0]
    for rank in (0, 1):
        state = torch.load(tmp_path / f'{rank}.pt')
        var, mean = torch.var_mean(data, 0)
        torch.testing.assert_close((state['running_mean'], state['running_var']), (mean, var))
        assert state['num_batches_tracked'] == 3


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('norm', [nn.BatchNorm2d, BatchNorm2d])
def test_checkpointing_updates_once_and_has_the_same_gradients(norm, reentrant):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).double()
    safe, x = copy.deepcopy(plain), random(4, 3, 8, 8)
    for _ in range(2):
        plain(x).square().sum().backward()
        with checkpoint_safe(safe):
            leaf = x.clone().requires_grad_()
            checkpoint(safe, leaf, use_reentrant=reentrant).square().sum().backward()
    assert moved(plain.state_dict(), safe.state_dict()) == {}
    for p, q in zip(plain.parameters(), safe.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    assert not safe[1]._forward_hooks and not safe[1]._forward_pre_hooks


# Folding


def test_fold():
    for bias, groups, affine in itertools.product((True, False), (1, 2), (True, False)):
        conv = nn.Conv2d(4, 6, 3, padding=1, bias=bias, groups=groups)
        bn = BatchNorm2d(6, affine=affine)
        model, x = nn.Sequential(conv, bn).double(), random(4, 4, 5, 5)
        for p in bn.parameters():
            nn.init.normal_(p)
        model(x)
        torch.testing.assert_close(fold_batchnorm(conv, bn.eval())(x), model(x))
    for wrong in (BatchNorm2d(5).eval(), BatchNorm2d(6)):
        with pytest.raises(ValueError, match=r'eval\(\)|5'):
            fold_batchnorm(conv, wrong)


@pytest.mark.parametrize(
    'conv, bn, shape',
    [
        (nn.Linear(4, 6), nn.BatchNorm1d(6), (8, 4)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (8, 4, 5, 5)),
        (nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6), (8, 4, 3, 3, 3)),
    ],
)
def test_fold_into_other_layers(conv, bn, shape):
    model, x = nn.Sequential(conv, bn).double(), random(*shape)
    model(3 * x)
    folded = fold_batchnorms(model.eval(), x)
    assert type(folded[1]) is nn.Identity
    torch.testing.assert_close(folded(x), model(x))


def test_a_linear_is_folded_only_with_proof():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).double()
    x = random(8, 4, 4)  # channels in the middle: the Linear works on the last dimension
    net(3 * x)
    torch.testing.assert_close(fold_batchnorms(net.eval())(x), net(x))
    with pytest.raises(ArithmeticError):
        fold_batchnorms(net, x)


def test_half_precision_passes_its_proof():
    report = Report()
    fold_batchnorms(small_net().eval().half(), random(2, 3, 8, 8), report=report)
    assert report[-1].action == 'proved'


class Tied(nn.Sequential):
    "The weight of the convolution is used a second time, by hand."

    def forward(self, x):
        return nn.functional.conv_transpose2d(super().forward(x), self[0].weight)


class Twice(nn.Sequential):
    "The output of the convolution is used beside its norm."

    def forward(self, x):
        x = self[0](x)
        return x + self[1](x)


def test_fold_a_model_and_leave_what_cannot_be_folded():
    shared, hooked = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda layer, inputs, output: output.relu())
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    x = random(8, 4, 6, 6)
    for model in (
        nn.Sequential(nn.Conv2d(4, 4, 3), BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(shared, nn.BatchNorm2d(4), shared),
        Tied(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        Twice(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        nn.Sequential(hooked, nn.BatchNorm2d(4)),
        nn.Sequential(normed, nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), BatchNormAct2d(4)),
        nn.Sequential(nn.ConvTranspose2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)),
    ):
        model.double()(5 * x)
        report = Report()
        folded = fold_batchnorms(model.eval(), x, report=report)
        assert sum(isinstance(m, AnyBatchNorm) for m in folded.modules()) == 1
        assert sum(c.action == 'kept' and bool(c.note) for c in report) == 1
        torch.testing.assert_close(folded(x), model(x))


def test_a_fold_that_is_wrong_does_not_pass_its_proof(monkeypatch):
    net, x = small_net().eval(), random(2, 3, 8, 8)
    report = Report()
    fold_batchnorms(net, x, report=report)
    assert [c.action for c in report] == ['folded', 'folded', 'proved']
    monkeypatch.setattr('normnotes.surgery.fold_batchnorm', lambda conv, bn: conv)
    with pytest.raises(ArithmeticError):
        fold_batchnorms(net, x)
