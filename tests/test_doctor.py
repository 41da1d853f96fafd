"""The doctor finds each planted fault in its place, alarms nobody else, and changes nothing."""

import copy
import json
import random
import sys
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from normnotes import cli
from normnotes.data_checks import CHECKS
from normnotes.doctor import FIXES, examine
from normnotes.models import CifarNet, Net

NUMBERS = ('weight', 'bias', 'running_mean', 'running_var')


class Frozen(nn.Module):
    "A batch norm whose numbers are buffers, as detection libraries have it."

    def __init__(self, channels):
        super().__init__()
        self.eps = 1e-5
        for name, start in zip(NUMBERS, (1.0, 0.0, 0.0, 1.0), strict=True):
            self.register_buffer(name, torch.full((channels,), start))

    def forward(self, x):
        shape = (1, -1, 1, 1)
        scale = self.weight / (self.running_var + self.eps).sqrt()
        return x * scale.view(shape) + (self.bias - self.running_mean * scale).view(shape)


Frozen.__name__ = 'FrozenBatchNorm2d'


class Sloppy(nn.GroupNorm):
    "A group norm that takes the variance by the shortcut, in the precision of its input."

    def forward(self, x):
        sets = x.reshape(len(x), self.num_groups, -1)
        mean = sets.mean(2, keepdim=True)
        var = (sets * sets).mean(2, keepdim=True) - mean * mean
        return ((sets - mean) / (var.abs() + self.eps).sqrt()).reshape(x.shape)


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


def make(norm=nn.BatchNorm2d, bias=False):
    "A healthy network: three convolutions with norms; b1, b2 and b3 are the norms."
    torch.manual_seed(0)
    layers = {}
    for i, (a, b) in enumerate(((3, 8), (8, 16), (16, 16)), 1):
        layers[f'c{i}'] = nn.Conv2d(a, b, 3, padding=1, bias=bias)
        layers[f'b{i}'] = norm(b)
        layers[f'r{i}'] = nn.ReLU()
    layers |= {'pool': nn.AdaptiveAvgPool2d(1), 'flat': nn.Flatten(), 'fc': nn.Linear(16, 5)}
    return nn.Sequential(OrderedDict(layers))


def images(n=16, seed=1, shift=0.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, 8, 8, generator=g) + shift


def batches(count=6, n=16, shift=0.0):
    g = torch.Generator().manual_seed(2)
    return [(images(n, i, shift), torch.randint(5, (n,), generator=g)) for i in range(count)]


def trained(norm=nn.BatchNorm2d, **options):
    "The healthy network with running statistics as after many steps."
    model = make(norm, **options)
    with torch.no_grad():
        for x, _ in batches(60):
            model(x)
    return model


group = partial(nn.GroupNorm, 4)


# -- a planted fault for each check: the model, what `examine` gets, the layers to be named


def bad_stats():
    model = trained()
    model.b2.running_var[3] = float('nan')
    return model, {}, {'b2'}


def bad_gains():
    model = trained()
    model.b2.weight.data[0] = float('nan')
    return model, {}, {'b2'}


def never_updated():
    model = trained()
    model.b2.reset_running_stats()
    return model, {}, {'b2'}


def frozen_identity():
    model = trained()
    model.b2 = Frozen(16)
    return model, {}, {'b2'}


def zero_gains():
    model = trained()
    nn.init.zeros_(model.b3.weight)
    return model, {}, {'b3'}


def momentum():
    model = trained()
    model.b1.momentum = 0
    return model, {}, {'b1'}


def eps():
    model = trained()
    model.b3.eps = 0.1
    return model, {}, {'b3'}


def no_running_stats():
    model = trained()
    model.b2 = nn.BatchNorm2d(16, track_running_stats=False)
    return model, {}, {'b2'}


def one_group_per_channel():
    model = make(group)
    model.b2 = nn.GroupNorm(16, 16)
    return model, {}, {'b2'}


def mixed_dtypes():
    model = trained()
    model.b2.running_mean = model.b2.running_mean.double()
    return model, {}, {'b2'}


def half_frozen():
    model = trained()
    model.b1.requires_grad_(False)
    return model, {}, {'b1'}


def eval_gains():
    model = trained()
    model.b3.eval()
    return model, {}, {'b3'}


def update_counts():
    model = trained()
    model.b2.num_batches_tracked *= 2
    return model, {}, {'b2'}


def per_process():
    return nn.DataParallel(trained()), {}, {''}


def decay():
    model = trained()
    rest = [p for name, p in model.named_parameters() if not name.startswith('b')]
    norms = [p for name, p in model.named_parameters() if name.startswith('b') and name[1] != '2']
    groups = [{'params': rest}, {'params': norms, 'weight_decay': 0}]
    groups.append({'params': model.b2.parameters(), 'weight_decay': 0.1})
    return model, {'optimizer': torch.optim.AdamW(groups, weight_decay=0.1)}, {'b2'}


def in_place():
    model = make(group)
    model.r2.inplace = True
    return model, {}, {'r2'}


def bias_before_norm():
    model = trained()
    model.c2 = nn.Conv2d(8, 16, 3, padding=1)
    return model, {}, {'c2'}


def one_number():
    model = make(group)
    model.r2 = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model.b3 = nn.Sequential(nn.GroupNorm(16, 16))
    return model, {'data': images()}, {'b3.0'}


def few_numbers():
    model = make(group)
    model.r2 = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return model, {'data': images()}, {'b3'}


def not_finite():
    model = trained()
    model.c2.weight.data[4] = float('inf')
    return model, {'data': images()}, {'b2'}


def constant_channels():
    model = trained()
    model.c2.weight.data[:6] = 0
    return model, {'data': images()}, {'b2'}


def tiny_variance():
    model = make(group)
    model.c2.weight.data *= 1e-4
    return model, {'data': images()}, {'b2'}


def rounding():
    model = make(group)
    model.c2 = nn.Sequential(model.c2, Shift(30.0))
    return model.bfloat16(), {'data': images()}, {'b2'}


def wrong_output():
    model = make(group)
    model.c2 = nn.Sequential(model.c2, Shift(3000.0))
    model.b2 = Sloppy(4, 16)
    data = images().to(memory_format=torch.channels_last)
    return model.to(memory_format=torch.channels_last), {'data': data}, {'b2'}


def offsets():
    model = make(group, bias=True)
    model.c2.bias.data[::2] = 20.0
    return model, {'data': images()}, {'b2'}


def same_output():
    model = make(group)
    model.c3.weight.data.zero_()
    model.c3 = nn.Sequential(model.c3, nn.Hardtanh())
    model.b3.bias.data.fill_(1.0)
    return model, {'data': images()}, {''}


def stale_stats():
    model = trained()
    model.b1.running_mean += 5 * model.b1.running_var.sqrt()
    return model, {'data': batches()}, {'b1'}


def train_eval_gap():
    model = trained()
    model.fc.weight.data *= 20
    model.b3.running_mean -= 8 * model.b3.running_var.sqrt()
    return model, {'data': batches()}, {'b3'}


def last_batch():
    model = trained()
    model.r1 = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    model.c2 = nn.Conv2d(8, 16, 1, bias=False)
    model.c3, model.b3 = nn.Identity(), nn.Identity()
    pairs = [(x, y) for x, y in zip(images(33), torch.arange(33) % 5, strict=True)]
    return model, {'data': torch.utils.data.DataLoader(pairs, 16)}, {'b2'}


def penalty():
    model = trained()

    def loss(output, label):
        return F.cross_entropy(output, label) + 0.5 * sum(p.abs().sum() for p in model.parameters())

    return model, {'data': batches(), 'loss': loss}, {''}


PLANTED = [globals()[name] for name in CHECKS]


def test_every_repair_is_of_a_check():
    assert set(FIXES) <= set(CHECKS)


def test_every_finding_links_to_a_heading_of_the_clinic(root):
    clinic = (root / 'nbs' / 'use' / 'clinic.ipynb').read_text(encoding='utf-8')
    assert [c.slug for c in CHECKS.values() if '{#' + c.slug + '}' not in clinic] == []


@pytest.mark.parametrize('plant', PLANTED)
def test_a_planted_fault_is_found_in_its_layer_and_nowhere_else(plant):
    model, given, layers = plant()
    found = [f for f in examine(model, **given).findings if f.check == plant.__name__]
    assert {f.layer for f in found} == layers
    for finding in found:
        assert finding.message and finding.why and finding.repair and finding.link


# -- nothing is changed


def draws_numbers(module, inputs, output):
    random.random(), np.random.rand()


def fingerprint(model, loader=None):
    "Everything that a forward pass may move, in the model and in the process."
    parts = []
    for name, m in model.named_modules():
        hooks = [len(getattr(m, kind)) for kind in vars(m) if kind.endswith('_hooks')]
        parts.append((name, id(m), m.training, hooks, sorted(vars(m))))
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        grad = None if t.grad is None else t.grad.sum().item()
        parts.append((name, id(t), t._version, t.requires_grad, grad, t.double().sum().item()))
    parts += [
        torch.get_rng_state().sum().item(),
        str(random.getstate()),
        str(np.random.get_state()),
    ]
    parts += [str(torch.is_grad_enabled()), str(sorted(model.state_dict()))]
    if loader is not None:
        parts.append(loader.generator.get_state().sum().item())
    return parts


@pytest.mark.parametrize('frozen', [False, True])
def test_nothing_is_changed(frozen):
    model = trained()
    model.r1, model.r2 = nn.Dropout(0.5), nn.RReLU()
    model.c3 = nn.utils.parametrizations.spectral_norm(model.c3)
    model.b1.register_forward_hook(draws_numbers)
    F.cross_entropy(model(images()), torch.arange(16) % 5).backward()
    model.b2.train(not frozen)
    optimizer = torch.optim.Adam(model.parameters())
    pairs = list(zip(images(48), torch.arange(48) % 5, strict=True))
    own = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(pairs, 16, shuffle=True, generator=own)
    before = fingerprint(model, loader)
    for data in (None, images(), loader):
        examine(model, data, optimizer)
        assert fingerprint(model, loader) == before
    model.fc = nn.Linear(3, 3)
    before = fingerprint(model, loader)
    with pytest.raises(ValueError, match='fc'):
        examine(model, loader)
    assert fingerprint(model, loader) == before


# -- healthy models

# the page on the doctor counts the alarms of all of these
SMALL = """squeezenet1_1 resnet18 resnet34 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 regnet_y_400mf regnet_x_400mf convnext_tiny swin_t
vit_b_32 googlenet densenet121""".split()
SECOND_SIZES = {'resnet34', 'mobilenet_v3_large', 'regnet_x_400mf'}  # of families in the list


def torchvision_model(name):
    torch.manual_seed(0)
    more = {'init_weights': True} if name == 'googlenet' else {}
    return getattr(torchvision.models, name)(weights=None, **more)


def alarms(report):
    return [f'{f.check} {f.layer}: {f.message}' for f in report.findings if f.severity != 'note']


@pytest.mark.parametrize('name', [name for name in SMALL if name not in SECOND_SIZES])
def test_a_fresh_model_of_torchvision_is_healthy(name):
    size = 224 if name == 'vit_b_32' else 96
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert alarms(examine(torchvision_model(name), x)) == []


@pytest.mark.parametrize('norm', [nn.BatchNorm2d, group, nn.InstanceNorm2d])
def test_a_healthy_network_gets_no_alarm_at_any_depth(norm):
    model = trained(norm)
    for data in (None, images(), batches()):
        assert alarms(examine(model, data, torch.optim.SGD(model.parameters(), 0.1))) == []


@pytest.mark.parametrize('norm', ['bn', 'ln', 'gn', 'rms', 'lnc', 'none'])
def test_the_networks_of_the_book_get_no_alarm(norm):
    for model, shape in ((Net(norm), (8, 1, 28, 28)), (CifarNet(norm), (8, 3, 32, 32))):
        assert alarms(examine(model, torch.randn(shape))) == []


# -- known cases


def named_faults(report):
    return {(f.check, f.layer) for f in report.findings if f.severity != 'note'}


def test_one_image_in_front_of_a_norm_behind_a_pool():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    assert named_faults(examine(net, images(1))) == {('one_number', '2')}
    assert named_faults(examine(net, images(16))) == set()


# -- causes of stale statistics


@pytest.mark.parametrize(
    ('spoil', 'word'),
    [
        (lambda m: m.b1.reset_running_stats(), 'never updated'),
        (lambda m: setattr(m.b1, 'momentum', 0), 'momentum is 0'),
        (lambda m: m.b1.num_batches_tracked.fill_(5), '5 updates'),
        (lambda m: m.b1.num_batches_tracked.fill_(40), 'lag'),
        (lambda m: setattr(m.b1, 'momentum', 0.9), '0.9'),
        (lambda m: None, 'other data'),
    ],
)
def test_the_cause_of_stale_statistics_is_named(spoil, word):
    model = trained()
    model.b1.running_mean += 5 * model.b1.running_var.sqrt()
    spoil(model)
    if 'never' in word:
        with torch.no_grad():
            model.c1.weight *= 5
    found = [f for f in examine(model, batches()).findings if f.check == 'stale_stats']
    assert found and found[0].layer == 'b1' and word in found[0].message


def test_recomputed_statistics_close_the_gap():
    model = trained()
    model.b3.running_mean -= 8 * model.b3.running_var.sqrt()
    model.fc.weight.data *= 20
    report = examine(model, batches())
    assert ('train_eval_gap', 'b3') in named_faults(report)
    fixed = report.fix()
    assert alarms(examine(fixed.model, batches())) == [] and fixed.left == []
    assert named_faults(examine(model, batches())) == named_faults(report)


# -- data of all kinds


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, tokens, mask):
        x = self.norm(self.embed(tokens)) * mask[..., None]
        return {'logits': self.head(x.mean(1))}


def test_a_batch_may_be_a_tuple_a_dictionary_or_a_function():
    model = Sequence()
    tokens, mask = torch.arange(24).reshape(4, 6) % 11, torch.ones(4, 6)
    label = torch.tensor([0, 1, 2, 0])
    named = {'tokens': tokens, 'mask': mask, 'labels': label}
    for data in (named, (tokens, mask, label), lambda m: m(tokens, mask), [named, named]):
        report = examine(model, data)
        assert report.layers[0]['numbers'] == 8 and report.healthy
    model.norm.eps = 0.0
    assert examine(model, named).fix().model.norm.eps == 1e-5
    with pytest.raises(ValueError, match=r'mask.*lambda'):
        examine(model, tokens)


def test_a_list_of_input_and_labels_is_one_batch_and_a_list_of_batches_is_not():
    model = trained()
    assert examine(model, [images(), torch.arange(16) % 5]).evidence.both is None
    assert len(examine(model, [images(), images()]).evidence.both.sizes) == 2
    assert len(examine(model, batches(3)).evidence.both.losses) == 3


def test_an_empty_loader_is_refused_and_an_endless_one_ends():
    def endless():
        while True:
            yield images()

    with pytest.raises(ValueError, match='no batches'):
        examine(trained(), [])
    assert len(examine(trained(), endless(), batches=3).evidence.both.sizes) == 3
    with pytest.raises(ValueError, match='batches=0'):
        examine(trained(), endless(), batches=0)


def test_data_of_the_wrong_shape_names_the_layer():
    with pytest.raises(ValueError, match='c1') as error:
        examine(trained(), torch.randn(4, 1, 8, 8))
    assert isinstance(error.value.__cause__, RuntimeError)
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match='lazy'):
        examine(lazy, images())
    with pytest.raises(TypeError, match='dict'):
        examine({})


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_any_precision(dtype):
    report = examine(trained().to(dtype).eval(), batches())
    assert alarms(report) == [] and len(report.evidence.seen) == 3


@pytest.mark.parametrize(
    'wrap',
    [
        lambda m: torch.compile(m, backend='eager'),
        lambda m: (m.compile(backend='eager'), m)[1],
        lambda m: nn.Sequential(OrderedDict(inner=torch.compile(m, backend='eager'))),
        nn.DataParallel,
    ],
)
def test_a_compiled_or_wrapped_model(wrap):
    model = wrap(trained())
    for data in (images(), batches()):
        report = examine(model, data)
        assert len(report.evidence.seen) == 3 and report.healthy
    model(images())


def test_a_model_without_norms():
    report = examine(nn.Linear(3, 2), torch.randn(4, 3))
    assert report.findings == [] and report.healthy and 'no norm' in str(report)


def test_a_layer_that_is_used_twice_is_one_row():
    norm = nn.GroupNorm(2, 4)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), norm)
    report = examine(net, images())
    assert len(report.layers) == 1 and report.evidence.seen['1'].calls == 2


# -- the report


def test_the_report_is_text_html_and_data():
    model, given, _ = momentum()
    report = examine(model, images(), **given)
    data = json.loads(report.to_json())
    assert [f['check'] for f in data['findings']] == [f.check for f in report.findings]
    assert {'check', 'severity', 'layer', 'message', 'value', 'repair'} <= set(data['findings'][0])
    assert [row['layer'] for row in data['layers']] == ['b1', 'b2', 'b3']
    for text in (str(report), report._repr_html_()):
        assert 'momentum' in text and 'b1' in text
    assert not report.healthy
    severities = [f.severity for f in report.findings]
    assert severities == sorted(severities, key=['fault', 'warning', 'note'].index)


def test_html_escapes_what_comes_from_the_model():
    net = nn.Sequential(OrderedDict({'<b>': nn.BatchNorm2d(3, momentum=0)}))
    assert '<b>' not in examine(net)._repr_html_()


def test_many_equal_findings_are_one_row():
    model = torchvision_model('resnet18')
    assert len(examine(model).findings) == 20 and len(str(examine(model)).splitlines()) < 8


@pytest.mark.parametrize('check', list(FIXES))
def test_a_repair_is_done_on_a_copy_and_told(check):
    model, given, layers = globals()[check]()
    if check == 'eps':
        model.b3.eps = 0.0
    before = copy.deepcopy(model.state_dict())
    report = examine(model, **given)
    fixed = report.fix()
    assert fixed.model is not model and len(fixed.done) == len(layers)
    assert all(any(layer in line for line in fixed.done) for layer in layers)
    assert check not in {f.check for f in examine(fixed.model, **given).findings}
    assert check in {f.check for f in examine(model, **given).findings}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_what_needs_a_decision_is_left():
    model = trained()
    model.b1.weight.data[0] = float('nan')
    fixed = examine(model, images()).fix()
    assert [f.check for f in fixed.left if f.check == 'bad_gains'] == ['bad_gains']


# -- the command

MODULE = """
import torch
from torch import nn

def good():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

def bad():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0))

ready = good()
number = 3

def needs(argument):
    pass
"""


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    "`normnotes doctor WORDS` in a folder with a module `mine`: exit code, output, errors."
    (tmp_path / 'mine.py').write_text(MODULE)
    (tmp_path / 'broken.py').write_text('import no_such_library')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))

    def run(words):
        code = cli.main(['doctor', *words.split()])
        return code, *capsys.readouterr()

    yield run
    for name in ('mine', 'broken'):
        sys.modules.pop(name, None)


def test_the_exit_code_says_whether_something_is_wrong(doctor):
    code, out, _ = doctor('mine:good --input 4,3,8,8')
    assert code == 0 and '1 norm' in out
    code, out, _ = doctor('mine:bad')
    assert code == 1 and 'momentum' in out
    assert doctor('mine:ready')[0] == 0


def test_the_command_prints_json(doctor):
    code, out, _ = doctor('mine:bad --json --input 4,3,8,8')
    data = json.loads(out)
    assert code == 1 and data['layers'][0]['numbers'] == 4 * 6 * 6
    assert any(f['check'] == 'momentum' and f['layer'] == '1' for f in data['findings'])


@pytest.mark.parametrize(
    ('words', 'named'),
    [
        ('mine', 'mine'),
        ('mine:god', 'good'),
        ('mine:number', 'number'),
        ('mine:needs', 'argument'),
        ('nowhere:model', 'nowhere'),
        ('broken:model', 'no_such_library'),
        ('mine:good --input 4,3,x', '4,3,x'),
        ('mine:good --input 4,1,8,8', '0 (Conv2d)'),
        ('mine:good --inputs 4,3,8,8', '--inputs'),
    ],
)
def test_a_usage_error_is_one_line(doctor, words, named):
    code, out, errors = doctor(words)
    assert (code, out) == (2, '') and named in errors and errors.count('\n') == 1
