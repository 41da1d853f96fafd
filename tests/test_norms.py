"""Every norm of the table against its definition and torch.nn."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from normnotes import norms
from normnotes.models import Net, count_params
from normnotes.norms import BatchNorm2d, GroupNorm, LayerNorm2d, make_norm
from normnotes.sets import NORMS, count_sets, divisors, norm_kind, parse_norm, stat_sets
from normnotes.sets import normalize_by_sets as by_sets

# float64: what is left is the order of the sums. float32: a rounding is 6e-8 of a number, a
# gradient sums some hundred numbers, and a division by a small deviation enlarges what is there.
BOUNDS = {torch.float64: 1e-10, torch.float32: 2e-4}
DEVICES = ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']
KINDS = [kind for kind, row in NORMS.items() if row.layer]  # every norm that has a layer
TWINS = ['bn', 'in', 'gn', 'ln']  # the norms that torch.nn has for images
each_kind = pytest.mark.parametrize('kind', KINDS)
each_twin = pytest.mark.parametrize('kind', TWINS)
quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def define(kind, x, groups=4):
    "The norm by its definition."
    return by_sets(x, stat_sets(kind, x.shape, groups), centred=NORMS[kind].centred)


def pair(kind, channels, **options):
    "The layer of the book and its twin of torch.nn."
    return [make_norm(kind, channels, impl=impl, **options) for impl in ('scratch', 'torch')]


def random(*shape, seed=0, dtype=torch.float64):
    make = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)


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


@given(st.sampled_from(list(TWINS)), st.sampled_from(list(BOUNDS)), st.data())
@quick
def test_same_as_torch(kind, dtype, data):
    draw = data.draw
    n, c, h, w = (draw(st.integers(low, high)) for low, high in ((1, 5), (1, 8), (1, 6), (2, 6)))
    options = {'eps': draw(st.sampled_from([1e-5, 0.1])), 'affine': draw(st.booleans())}
    if kind in ('bn', 'in'):
        options['track_running_stats'] = draw(st.booleans())
        options['momentum'] = draw(st.sampled_from([0.1, 1.0, *[None] * (kind == 'bn')]))
    if kind == 'gn':
        options['groups'] = draw(st.sampled_from(divisors(c)))
    ours, theirs = pair(kind, c, dtype=dtype, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    torch.manual_seed(draw(st.integers(0, 1000)))
    for p in theirs.parameters():
        nn.init.normal_(p)
    ours.load_state_dict(theirs.state_dict())
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    offset = draw(st.sampled_from([0.0, 1.0, 30.0]))
    for step in range(3):
        if step == 2:
            ours.eval(), theirs.eval()
        x, g = torch.randn(2, n, c, h, w, dtype=dtype)
        x = (2 * x + offset).contiguous(memory_format=layout)
        agree(outcomes(ours, x, g), outcomes(theirs, x, g), BOUNDS[dtype])
    theirs.load_state_dict(ours.state_dict())


@given(st.sampled_from(KINDS), st.data())
@quick
def test_same_as_the_definition(kind, data):
    n, c, h, w = (data.draw(st.integers(1, high)) for high in (4, 8, 4, 4))
    groups = data.draw(st.sampled_from(divisors(c))) if kind == 'gn' else None
    x, weight = random(n, c, h, w) + 1, random(c, seed=1)
    layer = make_norm(kind, c, groups=groups, impl='scratch', dtype=torch.float64)
    layer.weight.data.copy_(weight)
    if x.numel() > count_sets(kind, x.shape, groups):  # more than one number in a set
        expected = define(kind, x, groups) * weight.view(-1, 1, 1)
        assert (layer(x) - expected).abs().max() < 1e-10


@pytest.mark.parametrize('shape', [(5, 6), (3, 6, 1, 1), (4, 1)])
@pytest.mark.filterwarnings('ignore:RMSNorm2d has one number')
def test_rms_is_the_norm_of_torch_where_both_exist(shape):
    ours, theirs = (
        make(shape[1], eps=1e-5, dtype=torch.float64) for make in (norms.RMSNorm2d, nn.RMSNorm)
    )
    theirs.weight.data.copy_(random(shape[1], seed=2))
    ours.load_state_dict(theirs.state_dict())
    x, g = random(2, *shape)
    theirs_of_images = nn.Sequential(nn.Flatten(), theirs, nn.Unflatten(1, shape[1:]))
    agree(outcomes(ours, x, g), outcomes(theirs_of_images, x, g), 1e-10)
    assert [name for name, _ in make_norm('rms', 4).named_parameters()] == ['weight']
    assert count_params(Net('rms')) == 8208  # a gain per channel, and no shift


def test_lnc_is_the_layer_norm_of_torch_with_channels_last():
    layer = make_norm('lnc', 6, dtype=torch.float64)
    weight, bias = layer.weight.data, layer.bias.data = random(2, 6, seed=1)
    x = random(2, 6, 3, 4)
    expected = nn.functional.layer_norm(x.movedim(1, -1), (6,), weight, bias).movedim(-1, 1)
    assert (layer(x) - expected).abs().max() < 1e-10


@each_kind
def test_second_derivatives_in_the_parameters(kind):
    "A gradient penalty trains gamma: second derivatives as of the definition."
    results = []
    layer = make_norm(kind, 4, impl='scratch', dtype=torch.float64)
    for norm in (layer, lambda x: define(kind, x) * layer.weight.view(-1, 1, 1)):
        x = random(3, 4, 3, 3).requires_grad_()
        (grad,) = torch.autograd.grad(norm(x).pow(3).sum(), x, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), [x, layer.weight]))
    agree(*results, 1e-9)


@each_kind
def test_compiled(kind):
    eager = make_norm(kind, 8, impl='scratch', **({'momentum': None} if kind == 'bn' else {}))
    compiled = torch.compile(copy.deepcopy(eager), fullgraph=True, backend='aot_eager')
    for seed in range(2):
        x, g = random(2, 4, 8, 5, 5, seed=seed, dtype=torch.float32)
        agree(outcomes(compiled, x, g), outcomes(eager, x, g), 1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize('device', DEVICES)
@each_twin
def test_devices_and_autocast(kind, device):
    ours, theirs = pair(kind, 8, device=device)
    x, g = random(2, 4, 8, 6, 6, dtype=torch.float32).to(device)
    agree(outcomes(ours, x, g), outcomes(theirs, x, g), 1e-4)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        with torch.autocast(device, dtype=dtype):
            a, b = ours(half), theirs(half)
        assert a.dtype == b.dtype and a.device == b.device
        assert (a.float() - b.float()).abs().max() < 0.05


@each_kind
def test_half_precision(kind):
    "The output is the exact one, rounded once; sums in half precision would be far off."
    x = (random(64, 4, 8, 8) + 8).bfloat16()
    layer, exact = make_norm(kind, 4, impl='scratch'), define(kind, x.double())
    y, _, grad, *_ = outcomes(layer, x, x)
    assert y.dtype == torch.bfloat16 and grad.dtype == torch.float32
    error = (y.double() - exact).abs() / exact.abs().clamp(min=0.1)
    assert error.max() < torch.finfo(torch.bfloat16).eps
    _, *grads = outcomes(layer.to(torch.bfloat16), x, x)
    assert grads[0].dtype == grads[1].dtype == torch.bfloat16


@each_kind
def test_far_from_zero(kind):
    "Mean 10,000, deviation 1: nothing is lost beyond the rounding of the mean itself."
    x, g = (random(16, 32, 8, 8) + 1e4).float(), random(16, 32, 8, 8, seed=1).float()
    layer = make_norm(kind, 32, impl='scratch')
    y, grad, *_ = outcomes(layer, x, g)
    assert (y - define(kind, x.double())).abs().max() < 2e-3
    exact = outcomes(layer.double(), x.double(), g.double())[1]
    assert (grad - exact).abs().max() < 2e-3 * exact.abs().max()


@each_kind
def test_memory_layout_and_frozen_parameters(kind):
    layer, x = make_norm(kind, 8, impl='scratch'), random(4, 8, 5, 6, dtype=torch.float32)
    layer.weight.requires_grad_(False)
    for training in (True, False):
        leaf = x.to(memory_format=torch.channels_last).requires_grad_()
        y = layer.train(training)(leaf)
        torch.testing.assert_close(y, layer(x), atol=1e-5, rtol=0)
        y.square().sum().backward()
        for tensor in (y, leaf.grad):
            assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.grad is None


@pytest.mark.parametrize('kind', [k for k in KINDS if k != 'bn'])
@pytest.mark.filterwarnings('ignore')  # not every operation has a rule of its own for vmap
def test_gradients_of_each_image(kind):
    layer, x = make_norm(kind, 4, impl='scratch').double(), random(3, 4, 5, 5)

    def loss(p, x):
        return torch.func.functional_call(layer, p, (x[None],)).pow(3).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(layer.named_parameters()), x)
    for i in range(3):
        layer.zero_grad()
        layer(x[i : i + 1]).pow(3).sum().backward()
        torch.testing.assert_close(gradients['weight'][i], layer.weight.grad)


WRONG = [(2, 4), (4, 3, 3), (2, 5, 3, 3), (2, 4, 3, 3, 3), (4,), (1, 4, 1, 1), (0, 4, 3, 3)]
WRONG += [(2, 4, 1, 1), (2, 4, 0, 3)]
INPUTS = [torch.ones(shape) for shape in WRONG]
INPUTS += [torch.ones(2, 4, 3, 3, dtype=d) for d in (torch.float64, torch.int64, torch.bfloat16)]


def what_happens(layer, x):
    try:
        y = layer(x)
        return y.shape, y.dtype
    except (ValueError, RuntimeError, IndexError) as error:
        return RuntimeError if isinstance(error, NotImplementedError) else type(error)


@each_twin
@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.filterwarnings('ignore')
def test_what_fails_in_torch_fails_here_in_the_same_way(kind, affine):
    running = [{}, {'track_running_stats': True}] if affine and kind in ('bn', 'in') else [{}]
    for x, training, options in itertools.product(INPUTS, (True, False), running):
        ours, theirs = (m.train(training) for m in pair(kind, 4, affine=affine, **options))
        expected = what_happens(theirs, x)
        if expected is IndexError:  # torch's instance norm stumbles over an empty batch
            expected = (x.shape, x.dtype)
        if 0 not in x.shape[2:] or expected is RuntimeError:  # older torch lets these pass
            assert what_happens(ours, x) == expected, (x.shape, x.dtype, training)


@each_kind
def test_an_empty_batch_teaches_nothing(kind):
    layer, x = make_norm(kind, 4, impl='scratch'), torch.zeros(0, 4, 3, 3, requires_grad=True)
    before = {name: b.clone() for name, b in layer.named_buffers() if 'running' in name}
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [0] * 4 and x.grad.shape == x.shape
    assert all(torch.equal(b, before[name]) for name, b in layer.named_buffers() if name in before)


def test_a_set_of_one_number_is_named_once():
    GroupNorm._warned = False
    with pytest.warns(UserWarning, match=r'GroupNorm has one number .*\(8, 4, 1, 1\)'):
        assert not GroupNorm(4, 4)(torch.ones(8, 4, 1, 1)).any()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        GroupNorm(4, 4)(torch.ones(8, 4, 1, 1))


def test_names_and_notation():
    for kind, row in NORMS.items():
        for name in (kind, kind.upper(), row.full, f' {row.full}_norm', row.layer or kind):
            assert norm_kind(name) == kind
    assert [norm_kind(f'BatchNorm{d}d') for d in (1, 2, 3)] == ['bn'] * 3
    assert parse_norm('group:4') == parse_norm('gn', 4) == parse_norm('gn:4', 4) == ('gn', 4)
    for wrong in ('', 'weight', 'norm', 'b', 'batch2', 'gn:x', 'gn:', 'gn:²', 'gn:0', 'bn:2'):
        with pytest.raises(ValueError, match=wrong or 'unknown norm'):
            parse_norm(wrong)
    with pytest.raises(ValueError, match='groups=5'):
        parse_norm('gn:2', 5)


@pytest.mark.parametrize('shape', [(4, 4, 2, 2), (5, 12, 7), (2, 8, 2, 3, 4), (6, 4), (1, 6, 3, 5)])
def test_labels_count_from_zero_and_sets_are_equally_large(shape):
    for kind in (kind for kind, row in NORMS.items() if row.sets):
        for groups in divisors(shape[1]) if kind == 'gn' else [None]:
            sets, count = stat_sets(kind, shape, groups), count_sets(kind, shape, groups)
            assert sets.shape == shape
            assert sets.flatten().bincount().tolist() == [math.prod(shape) // count] * count
    assert torch.equal(stat_sets('gn', shape, 1), stat_sets('ln', shape))
    assert torch.equal(stat_sets('gn', shape, shape[1]), stat_sets('in', shape))


def test_make_norm():
    assert [sum(p.numel() for p in make_norm(k, 16).parameters()) for k in TWINS] == [32] * 4
    assert isinstance(make_norm('none', 4), nn.Identity) and make_norm('gn:6', 12).num_groups == 6
    assert make_norm(lambda c: nn.Conv2d(c, c, 1), 5).in_channels == 5
    for kind, channels, options, named in (
        ('gn:3', 10, {}, 'use 1, 2, 5 or 10'),
        ('bn', 10, {'groups': 2}, 'groups=2'),
        ('bn', 10, {'impl': 'c++'}, 'torch'),
        (nn.BatchNorm2d, 16, {'groups': 4}, 'groups=4'),
        ('bn', 3, {'ghost': 0}, 'ghost=0'),
        ('gn', 4, {'ghost': 2}, 'ghost=2'),
        ('bn', 4, {'ghost': 2, 'impl': 'scratch'}, 'ghost=2'),
        (nn.BatchNorm2d, 4, {'ghost': 2}, 'ghost=2'),
    ):
        with pytest.raises(ValueError, match=named):
            make_norm(kind, channels, **options)
    with pytest.raises(TypeError, match=r'\[4, 6, 6\]'):
        LayerNorm2d([4, 6, 6])


# Tools of torch


def test_tools_of_torch_find_our_batch_norm():
    data = random(60, 3, 4, 4, dtype=torch.float32) + 5
    ours, theirs = nn.Sequential(BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    for net in (ours, theirs):
        torch.optim.swa_utils.update_bn(data.split(20), net)
    agree(list(ours.buffers()), list(theirs.buffers()), 1e-5)
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(ours)[0]
    assert type(sync) is nn.SyncBatchNorm and sync.weight is ours[0].weight
