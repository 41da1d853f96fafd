"""The playground: its network against torch in Node, and the page in a browser."""

import itertools

import pages
import pytest
import torch
import torch.nn.functional as F

from normnotes.models import StackNet
from normnotes.sets import NORMS

WIDTH, GROUPS, MOMENTUM, RATE, STEPS = 12, 3, 0.3, 0.003, 20

SCRIPT = """
import {StackNet} from './network.js';
import fs from 'fs';
const cases = JSON.parse(fs.readFileSync('cases.json'));
console.log(JSON.stringify(cases.map(({options, values, images, labels, rate, steps}) => {
  const net = new StackNet({...options, Numbers: Float64Array});
  net.parameters.forEach((p, i) => p.value.set(values[i]));
  const x = Float64Array.from(images), y = Int32Array.from(labels);
  const logits = net.forward(x, y.length, true), grad = new Float64Array(logits.length);
  net.loss(logits, y, grad);
  net.backward(grad);
  const first = {logits: [...logits], grads: net.parameters.map(p => [...p.grad])};
  net.update(rate);
  for (let step = 1; step < steps; step++) net.step(x, y, rate);
  const running = net.layers.map(({norm}) =>
    norm?.runningMean ? [...norm.runningMean, ...norm.runningVar] : []);
  const inUse = [...net.forward(x, y.length, false)];
  return {...first, end: net.parameters.map(p => [...p.value]), running, inUse};
})));
"""


def test_outputs_gradients_and_training_are_those_of_torch(node):
    generator, nets, cases = torch.Generator().manual_seed(0), [], []
    kinds = ['none', 'bn', 'ln', 'gn', 'in', 'rms']
    for norm, residual, depth in itertools.product(kinds, [False, True], [2, 5, 8]):
        groups = f':{GROUPS}' if norm == 'gn' else ''
        net = StackNet(norm + groups, depth=depth, residual=residual).double()
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = MOMENTUM
        for p in net.parameters():
            spread, centre = (0.12, 0.0) if p.ndim > 1 else (0.5, 1.0)
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.data = spread * noise + centre
        n = int(torch.randint(1, 9, (), generator=generator))
        x = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 10, (n,), generator=generator)
        nets.append((net, x, y))
        options = {'norm': norm, 'groups': GROUPS, 'depth': depth, 'residual': residual}
        cases.append(
            {
                'options': options | {'momentum': MOMENTUM},
                'values': [p.flatten().tolist() for p in net.parameters()],
                'images': x.flatten().tolist(),
                'labels': y.tolist(),
                'rate': RATE,
                'steps': STEPS,
            }
        )
    answer = node(SCRIPT, cases)

    def same(found, expected):
        found = torch.tensor(found, dtype=torch.float64)
        expected = expected.detach().flatten()
        atol = 1e-9 * float(expected.abs().max()) + 1e-15
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)

    for (net, x, y), found in zip(nets, answer, strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
        for step in range(STEPS):
            logits = net(x)
            optimizer.zero_grad()
            F.cross_entropy(logits, y).backward()
            if step == 0:
                same(found['logits'], logits)
                for mine, p in zip(found['grads'], net.parameters(), strict=True):
                    same(mine, p.grad)
            optimizer.step()
        for mine, p in zip(found['end'], net.parameters(), strict=True):
            same(mine, p)
        for mine, layer in zip(found['running'], net.children(), strict=False):
            if mine:
                same(mine, torch.cat([layer.norm.running_mean, layer.norm.running_var]))
        same(found['inUse'], net.eval()(x))


HELD = """
import {StackNet} from './network.js';
const net = new StackNet({norm: 'bn', depth: 2}), held = [];
const x = new Float32Array(8 * 64).map((_, i) => Math.sin(i)), y = new Int32Array(8);
for (let step = 0; step <= 2000; step++) {
  net.step(x, y, 0.01);
  if (step % 1000 === 0) {
    globalThis.gc();
    const {heapUsed, arrayBuffers} = process.memoryUsage();
    held.push(heapUsed + arrayBuffers);
  }
}
console.log(JSON.stringify(held));
"""


def test_two_thousand_steps_keep_no_memory(node):
    _, half, end = node(HELD, [], '--expose-gc')
    assert end - half < 200_000  # bytes; a step that is kept would be some millions


STATES = """
import {NAMES, PRESETS, parse, address, withPreset} from './playground.js';
import {StackNet} from './network.js';
let message = '';
try { new StackNet({norm: 'gn', groups: 5}); } catch (error) { message = error.message; }
const there = Object.keys(PRESETS).every(name => {
  const state = withPreset(name);
  return JSON.stringify(parse('#' + address(state))) === JSON.stringify(state);
});
const odd = parse('#A.norm=xyz&A.depth=99&B.rate=0&seed=7');
console.log(JSON.stringify({NAMES, message, there, odd}));
"""


def test_norms_are_those_of_the_book_and_groups_must_divide(node):
    found = node(STATES)
    for kind, (_, color) in found['NAMES'].items():
        assert color == NORMS[kind].color
    assert '5' in found['message'] and '12 channels' in found['message']
    assert found['there']  # an address holds the whole state
    assert found['odd']['seed'] == 7 and found['odd']['A']['depth'] == 4


@pytest.fixture(scope='module')
def playground(chromium, serve, tmp_path_factory):
    "playground('preset=...', width) opens the page in a window so wide."
    folder = tmp_path_factory.mktemp('playground')
    pages.build('playground', folder)
    address = f'{serve(folder)}/playground.html'

    def opened(view='', width=390, **options):
        size = {'width': width, 'height': 844}
        return pages.opened(chromium, address, view, viewport=size, **options)

    return opened


def test_a_preset_does_what_its_name_says(playground):
    with playground('preset=the%20rate%20kills%20it', width=360) as page:
        page.get_by_label('speed', exact=True).select_option('fast')
        page.get_by_role('button', name='Play').press('Enter')
        status = page.locator('.pg-status')
        status.nth(0).locator('strong').wait_for(timeout=120_000)  # A is dead, and the page says so
        words = "document.querySelectorAll('.pg-status')[1].textContent"
        page.wait_for_function(f'/test [5-9]\\d/.test({words})', timeout=120_000)  # B learns
        page.get_by_role('button', name='Pause').click()
        assert page.evaluate('document.documentElement.scrollWidth') <= 360


def test_controls_answer_to_keys_and_touch_in_both_themes_and_at_every_width(playground):
    with playground(has_touch=True) as page:
        rate = page.get_by_label('learning rate', exact=True).first
        before = rate.input_value()
        rate.press('ArrowRight')
        assert rate.input_value() == str(int(before) + 1)
        assert 'A.rate=' in page.url  # the view can be sent
        rate = page.get_by_label('learning rate', exact=True).first
        held = 'node => node === document.activeElement'
        assert rate.evaluate(held)  # and the key can be pressed on
        page.get_by_role('button', name='Network B').tap()
        page.get_by_label('norm', exact=True).nth(1).select_option('gn')
        assert page.get_by_label('groups', exact=True).is_visible()
        page.get_by_role('link', name='batches of two').tap()
        assert 'A.batch=2' in page.url and 'B.norm=gn' in page.url
        page.get_by_role('button', name='Step').tap()
        page.wait_for_function("/[1-9]/.test(document.querySelector('.pg-status').textContent)")
        for _ in pages.each_theme(page):
            for width in (360, 390, 1280, 1920):
                page.set_viewport_size({'width': width, 'height': 800})
                assert page.evaluate('document.documentElement.scrollWidth') <= width
        assert page.get_by_role('button', name='Play').bounding_box()['y'] < 800
