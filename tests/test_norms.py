"""The layers of chapter 1 beside torch.nn's, on shapes, dtypes and options that nobody chose."""

import copy
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from normnotes.norms import (
    BatchNorm2d,
    GroupNorm,
    InstanceNorm2d,
    LayerNorm2d,
    fold_batchnorm,
    make_norm,
    norm_and_stats,
    recompute_stats,
    swap_norms,
)
from normnotes.sets import divisors, normalize_by_sets, stat_sets

# float64: what is left is the order of the sums. float32: a rounding is 6e-8 of a number, a gradient sums some hundred
# numbers, each side in its own order, and a division by a small deviation enlarges what is there.
BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-4}
DEVICES = [
    'cpu',
    pytest.param(
        'cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
    ),
]
quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def cases(draw):
    "One layer of ours, its twin of torch.nn, and how to feed them."
    kind = draw(st.sampled_from(['bn', 'gn', 'ln', 'in']))
    c = draw(st.integers(1, 8))
    shape = (draw(st.integers(1, 5)), c, draw(st.integers(1, 6)), draw(st.integers(2, 6)))
    dtype = draw(st.sampled_from([torch.float64, torch.float32]))
    options = {
        'eps': draw(st.sampled_from([1e-5, 1e-3, 0.1])),
        'affine': draw(st.booleans()),
        'dtype': dtype,
    }
    if kind in ('bn', 'in'):
        options['track_running_stats'] = draw(st.booleans())
        options['momentum'] = draw(
            st.sampled_from([0.1, 0.5, 1.0, *([None] if kind == 'bn' else [])])
        )
    groups = draw(st.sampled_from(divisors(c)))
    ours, theirs = {
        'bn': lambda: (BatchNorm2d(c, **options), nn.BatchNorm2d(c, **options)),
        'in': lambda: (InstanceNorm2d(c, **options), nn.InstanceNorm2d(c, **options)),
        'gn': lambda: (GroupNorm(groups, c, **options), nn.GroupNorm(groups, c, **options)),
        'ln': lambda: (LayerNorm2d(c, **options), nn.GroupNorm(1, c, **options)),
    }[kind]()
    seed, channels_last, offset = (
        draw(st.integers(0, 1000)),
        draw(st.booleans()),
        draw(st.sampled_from([0.0, 1.0, 30.0])),
    )
    return ours, theirs, shape, dtype, seed, channels_last, offset


def outcomes(layer, x, g):
    "Output, gradients and buffers."
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(leaf)
    grads = torch.autograd.grad((y * g).sum(), [leaf, *layer.parameters()])
    return [y.detach(), *grads, *(b.clone() for b in layer.buffers())]


def agree(ours, theirs, bound):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel():
            assert ((a - b).abs().max() / b.abs().max().clamp(min=1)).item() < bound


@given(cases())
@quick
def test_same_as_torch(case):
    ours, theirs, shape, dtype, seed, channels_last, offset = case
    torch.manual_seed(seed)
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):
        if step == 2:
            ours.eval(), theirs.eval()
        x = torch.randn(shape, dtype=dtype) * 2 + offset
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        g = torch.randn(shape, dtype=dtype)
        agree(outcomes(ours, x, g), outcomes(theirs, x, g), BOUNDS[dtype])
    theirs.load_state_dict(ours.state_dict())


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 4), st.integers(2, 4), st.data())
@quick
def test_same_as_the_definition(n, c, h, w, data):
    x = torch.randn(
        n, c, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(n + c + h + w)
    )
    groups = data.draw(st.sampled_from(divisors(c)))
    cuts = {'bn': (c, True), 'ln': (1, False), 'gn': (groups, False), 'in': (c, False)}
    for kind, (cut, across_batch) in cuts.items():
        expected = normalize_by_sets(x, stat_sets(kind, x.shape, groups))
        assert (norm_and_stats(x, cut, across_batch)[0] - expected).abs().max() < 1e-10


@given(
    st.sampled_from(['bn', 'ln', 'gn', 'in']),
    st.integers(1, 3),
    st.sampled_from([2, 4]),
    st.booleans(),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_derivatives(kind, n, c, affine):
    torch.manual_seed(n)
    x = torch.randn(n, c, 2, 3, dtype=torch.float64, requires_grad=True)
    layer = make_norm(
        kind,
        c,
        groups=2 if kind == 'gn' else None,
        impl='scratch',
        affine=affine,
        dtype=torch.float64,
    )
    assert torch.autograd.gradcheck(layer, (x,)) and torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize('kind', ['bn', 'ln', 'gn', 'in'])
def test_gradient_of_the_gradient_in_the_parameters(kind):
    "A gradient penalty trains gamma: second derivatives as torch's."
    results = []
    for impl in ('scratch', 'torch'):
        torch.manual_seed(0)
        layer = make_norm(kind, 4, impl=impl, dtype=torch.float64)
        x = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), [x, layer.weight, layer.bias]))
    agree(*results, 1e-10)


@pytest.mark.skipif(
    not (shutil.which('g++') or shutil.which('clang++')),
    reason='torch.compile needs a C++ compiler',
)
@pytest.mark.parametrize('kind', ['bn', 'ln', 'gn', 'in'])
def test_compiled(kind):
    torch.manual_seed(0)
    eager = make_norm(kind, 8, impl='scratch', **({'momentum': None} if kind == 'bn' else {}))
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True)
    for _ in range(2):
        x, g = torch.randn(2, 4, 8, 5, 5)
        agree(outcomes(compiled, x, g), outcomes(eager, x, g), 1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kind', ['bn', 'ln', 'gn', 'in'])
def test_devices_and_autocast(kind, device):
    ours, theirs = (make_norm(kind, 8, impl=impl, device=device) for impl in ('scratch', 'torch'))
    x, g = (
        torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(seed)).to(device)
        for seed in (0, 1)
    )
    agree(outcomes(ours, x, g), outcomes(theirs, x, g), 1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        with torch.autocast(device, dtype=dtype):
            a, b = ours(half), theirs(half)
        assert a.dtype == b.dtype and a.device == b.device
        assert (a.float() - b.float()).abs().max() < 0.05
        assert ours(half).dtype == dtype


def test_far_from_zero():
    "Mean 10,000, deviation 1: nothing is lost beyond the rounding of the mean itself."
    x = (
        torch.randn(16, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        + 1e4
    ).float()
    for kind in ('bn', 'ln', 'gn', 'in'):
        exact = normalize_by_sets(x.double(), stat_sets(kind, x.shape, 4))
        assert (make_norm(kind, 4, impl='scratch')(x) - exact).abs().max() < 2e-3


@pytest.mark.parametrize('kind', ['bn', 'ln', 'gn', 'in'])
def test_statistics_of_half_precision_are_float32(kind):
    "The output is the exact one, rounded once; sums in half precision would be far off."
    x = (torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0)) + 8).bfloat16()
    exact = normalize_by_sets(x.double(), stat_sets(kind, x.shape, 4))
    y = make_norm(kind, 4, impl='scratch')(x)
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() / exact.abs().clamp(min=0.1)).max() < torch.finfo(
        torch.bfloat16
    ).eps


@given(
    st.booleans(),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from(list(BOUNDS)),
    st.integers(0, 99),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_fold(bias, groups, affine, dtype, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=bias, groups=groups, dtype=dtype)
    bn = BatchNorm2d(6, affine=affine, dtype=dtype)
    for p in bn.parameters():
        nn.init.normal_(p)
    x = torch.randn(4, 4, 5, 5, dtype=dtype)
    bn(conv(x))
    both = bn.eval()(conv(x))
    worst = (fold_batchnorm(conv, bn)(x) - both).abs().max() / both.abs().max()
    assert worst < (1e-13 if dtype == torch.float64 else 1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_recomputed_statistics_do_not_depend_on_the_batches(sizes):
    make = torch.Generator().manual_seed(len(sizes))
    data = torch.randn(sum(sizes), 3, 2, 2, generator=make, dtype=torch.float64) + 5
    layer = recompute_stats(
        nn.Sequential(nn.BatchNorm2d(3, dtype=torch.float64)), data.split(sizes)
    )[0]
    assert (layer.running_mean - data.mean((0, 2, 3))).abs().max() < 1e-10
    assert (layer.running_var - data.transpose(0, 1).flatten(1).var(1)).abs().max() < 1e-10
    assert layer.num_batches_tracked.item() == len(sizes)


class BatchNormAct2d(nn.BatchNorm2d):
    "A norm with an activation inside, as timm has it."

    def forward(self, x):
        return super().forward(x).relu()


class Renamed(nn.BatchNorm2d):
    "Another name, the same forward."


def test_swap_refuses_a_norm_that_does_more():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4)))
    with pytest.raises(
        TypeError, match=r'1\.0 is a BatchNormAct2d, a BatchNorm2d .* first put plain layers'
    ):
        swap_norms(net)
    assert type(net[0]) is nn.BatchNorm2d and type(net[1][0]) is BatchNormAct2d
    net[1][0] = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())  # the way out
    assert sum(type(m) is nn.GroupNorm for m in swap_norms(net).modules()) == 2


def test_swap_takes_subclasses_that_only_have_another_name():
    assert [type(m) for m in swap_norms(nn.Sequential(Renamed(4), LayerNorm2d(4)), 'in')] == 2 * [
        nn.InstanceNorm2d
    ]


def test_swap_warns_when_nothing_matches():
    with pytest.warns(UserWarning, match='no two-dimensional norm layer found in Sequential'):
        swap_norms(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))


def test_callable_takes_no_groups():
    for extra in ({'groups': 4}, {'impl': 'scratch'}):
        with pytest.raises(ValueError, match='a callable decides for itself'):
            make_norm(nn.BatchNorm2d, 16, **extra)
        with pytest.raises(ValueError, match=r'0: .*a callable decides for itself'):
            swap_norms(nn.Sequential(nn.BatchNorm2d(16)), nn.InstanceNorm2d, **extra)
    with pytest.raises(ValueError, match="makes 'bn', 'ln', 'gn', 'in' and 'none'"):
        make_norm('lnc', 16)


def test_tools_of_torch_find_our_batch_norm():
    data = torch.randn(60, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 5
    results = []
    for make in (BatchNorm2d, nn.BatchNorm2d):
        net = nn.Sequential(make(3))
        torch.optim.swa_utils.update_bn(data.split(20), net)
        results.append([b.clone() for b in net.buffers()])
        assert net[0].momentum == 0.1
    agree(*results, 1e-5)
    ours = BatchNorm2d(3, eps=0.5, momentum=0.25)
    ours(data)
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(ours))[0]
    assert (
        type(sync) is nn.SyncBatchNorm
        and (sync.eps, sync.momentum) == (0.5, 0.25)
        and sync.weight is ours.weight
    )
    agree([sync.running_mean, sync.running_var], [ours.running_mean, ours.running_var], 1e-12)
    assert (sync.eval()(data) - ours.eval()(data)).abs().max() < 1e-5


def test_a_layer_norm_of_images_wants_channels_and_not_a_shape():
    with pytest.raises(
        TypeError, match=r'not a shape like \[4, 6, 6\]; nn.LayerNorm takes a shape'
    ):
        LayerNorm2d([4, 6, 6])
