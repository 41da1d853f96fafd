"""The explorer: its arithmetic against torch in Node, and the page by mouse, touch and keyboard."""

import math
import random

import pages
import pytest
import torch

from normnotes.sets import NORMS, divisors, four_images, normalize_by_sets, set_stats, stat_sets

KINDS = [kind for kind, norm in NORMS.items() if norm.sets]
MINUS = str.maketrans('−', '-')
WIDE, PHONE = {'width': 1280, 'height': 800}, {'width': 390, 'height': 844}

# ---- The arithmetic

COMPUTE = """
import fs from 'fs';
import * as api from './sets.js';
const compute = ({x, shape, kind, groups, steps, gamma, beta, grad}) => {
  const sets = api.statSets(kind, shape, groups), running = api.runningStats(x, shape, steps);
  const options = {groups, gamma, beta}, evaluation = {gamma, beta, running};
  return {sets, ...api.setStats(x, sets, api.centred(kind)), running,
    normalized: api.normalize(x, shape, kind, options),
    back: api.backward(grad, x, shape, kind, options),
    constant: api.backward(grad, x, shape, kind, {...options, constant: true}),
    evaluated: api.normalize(x, shape, 'bn', evaluation),
    backInUse: api.backward(grad, x, shape, 'bn', evaluation)};
};
let refusal = '';
try { api.statSets('gn', [1, 4, 2, 2], 3); } catch (error) { refusal = error.message; }
const found = JSON.parse(fs.readFileSync('cases.json')).map(compute);
console.log(JSON.stringify({found, refusal, four: api.fourImages(), norms: api.NORMS}));
"""


def cases(count=90):
    "Random batches: whole numbers or fractions, of many shapes, some with a constant image."
    chance = random.Random(0)
    for trial in range(count):
        channels = chance.choice((1, 2, 3, 4, 6, 8, 12))
        shape = [chance.randint(1, 5), channels, chance.randint(1, 4), chance.randint(2, 4)]
        size, kind = math.prod(shape), KINDS[trial % len(KINDS)]
        x = [chance.randint(-9, 99) if trial % 2 else chance.gauss(3, 10) for _ in range(size)]
        if trial % 5 == 0:
            x[: size // shape[0]] = [7.0] * (size // shape[0])
        yield {
            'x': x,
            'shape': shape,
            'kind': kind,
            'groups': chance.choice(divisors(channels)) if kind == 'gn' else None,
            'steps': chance.choice((0, 1, 2, 10, 40)),
            'gamma': [chance.gauss(1, 1) for _ in range(channels)],
            'beta': [chance.gauss(0, 1) for _ in range(channels)],
            'grad': [chance.gauss(0, 1) for _ in range(size)],
        }


def close(found, expected):
    found, expected = torch.tensor(found, dtype=torch.float64), expected.detach().flatten()
    atol = 1e-9 * float(expected.abs().max()) + 1e-9
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=atol)


def test_forward_backward_and_running_statistics_are_those_of_torch(node):
    asked = list(cases())
    answer = node(COMPUTE, asked)
    assert answer['four'] == four_images().flatten().tolist()
    assert '3' in answer['refusal'] and '1, 2 or 4' in answer['refusal']
    book = {kind: [NORMS[kind].full, NORMS[kind].color, NORMS[kind].centred] for kind in KINDS}
    assert answer['norms'] == book
    for case, found in zip(asked, answer['found'], strict=True):
        shape, kind = case['shape'], case['kind']
        x, grad = (
            torch.tensor(case[name], dtype=torch.float64).view(shape) for name in ('x', 'grad')
        )
        gamma, beta = (
            torch.tensor(case[name], dtype=torch.float64).view(1, -1, 1, 1)
            for name in ('gamma', 'beta')
        )
        sets, centred = stat_sets(kind, x.shape, case['groups']), NORMS[kind].centred
        mean, var = set_stats(x, sets, centred=centred)
        assert found['sets'] == sets.flatten().tolist()
        close(found['mean'], mean)
        close(found['variance'], var)
        x.requires_grad_()
        y = normalize_by_sets(x, sets, centred=centred) * gamma + beta
        close(found['normalized'], y)
        close(found['back']['total'], torch.autograd.grad((y * grad).sum(), x)[0])
        # with the statistics as constants only the straight path is left
        close(found['constant']['total'], grad * gamma / (var[sets] + 1e-5).sqrt())
        assert found['constant']['total'] == found['back']['straight']

        layer = torch.nn.BatchNorm2d(shape[1]).double()
        for _ in range(case['steps']):
            layer(x)
        close(found['running']['mean'], layer.running_mean)
        close(found['running']['variance'], layer.running_var)
        in_use = layer.eval()(x) * gamma + beta
        close(found['evaluated'], in_use)
        close(found['backInUse']['total'], torch.autograd.grad((in_use * grad).sum(), x)[0])


# ---- The page


@pytest.fixture(scope='module')
def site(serve, tmp_path_factory):
    folder = tmp_path_factory.mktemp('explorer')
    pages.build('explorer', folder)
    return serve(folder) + '/explorer.html'


@pytest.fixture
def explorer(chromium, site):
    "explorer('norm=gn', viewport=...) opens the page."
    return lambda view='', **options: pages.opened(chromium, site, view, **options)


@pytest.fixture(scope='module')
def shared(chromium, site):
    with pages.opened(chromium, site) as page:
        yield page


@pytest.fixture
def page(shared):
    "The explorer at its start, in a window that these tests share."
    shared.set_viewport_size(WIDE)
    shared.mouse.move(1, 1)
    show(shared, 'view=one')
    return shared


def number(page, i, side='left'):
    return page.locator(f".x-{side} [data-i='{i}']")


def place(image, channel, pixel=1):
    "The place of a number in the batch, everything counted from 1."
    return (image - 1) * 16 + (channel - 1) * 4 + pixel - 1


def having(page, what, side='left'):
    "The places of the numbers that have a class or a mark."
    chosen = f'.{what}' if what.startswith('n-') else f"[data-mark='{what}']"
    found = page.locator(f'.x-{side} tbody:not([hidden]) {chosen}')
    return sorted(found.evaluate_all('all => all.map(td => +td.dataset.i)'))


def numbers(page, side):
    cells = page.locator(f'.x-{side} tbody:not([hidden]) [data-i]').evaluate_all(
        "all => all.map(td => [+td.dataset.i, td.querySelector('b').textContent])"
    )
    return torch.tensor([float(text.translate(MINUS)) for _, text in sorted(cells)])


def members(kind, i, groups=2):
    sets = stat_sets(kind, (4, 4, 2, 2), groups).flatten()
    return (sets == sets[i]).nonzero().flatten().tolist()


def show(page, view):
    "Go to another view by the address."
    page.evaluate(
        """view => new Promise(done => {
          history.replaceState(null, '', '#');
          addEventListener('hashchange', () => setTimeout(done), {once: true});
          location.hash = view;
        })""",
        view,
    )


def test_every_norm_on_every_batch_shows_what_the_book_computes(page):
    for kind in KINDS:
        for batch, images in (('book', 4), ('random', 4), ('constant', 1), ('bright', 3)):
            groups = 4 if batch == 'random' else 2
            show(page, f'norm={kind}&groups={groups}&batch={batch}&seed=5&images={images}')
            x = numbers(page, 'left').view(images, 4, 2, 2)
            sets = stat_sets(kind, x.shape, groups)
            expected = normalize_by_sets(x, sets, centred=NORMS[kind].centred).flatten()
            shown = numbers(page, 'right')
            torch.testing.assert_close(shown, expected, rtol=0, atol=0.00501)
            assert (
                having(page, 'n-lit')
                == (sets.flatten() == sets[0, 0, 0, 0]).nonzero()[:, 0].tolist()
            )


def test_all_norms_at_once(page):
    show(page, 'view=all&edits=1.1.1:30')
    many = page.locator('.n-one')
    assert many.count() == len(KINDS)
    for kind, moved in zip(KINDS, (16, 16, 8, 4, 14, 4), strict=True):
        one = page.locator(f'[data-kind={kind}]')
        assert one.locator('[data-mark=▲], [data-mark=▼]').count() == moved
        assert one.locator('.n-lit').count() == len(members(kind, 0))
    page.locator("[data-kind=ln] [data-i='20']").click()
    assert having(page, 'n-here') == [20]


def test_the_backward_view_is_autograd(page):
    show(page, 'way=backward&at=2.3.2&gamma=1,1,2,1&beta=0,0,5,0')
    for kind in KINDS:
        show(page, f'norm={kind}&way=backward&at=2.3.2&gamma=1,1,2,1')
        x = four_images().requires_grad_()
        y = normalize_by_sets(x, stat_sets(kind, x.shape, 2), centred=NORMS[kind].centred)
        (2 * y[1, 2, 0, 1]).backward()
        torch.testing.assert_close(numbers(page, 'right'), x.grad.flatten(), rtol=0, atol=0.0051)


def test_gamma_and_beta_belong_to_a_channel(page):
    show(page, 'at=1.2.1')
    before = numbers(page, 'right').view(4, 4, 4)
    page.get_by_role('slider', name='γ').fill('2')
    page.get_by_role('slider', name='β').fill('-3')
    after = numbers(page, 'right').view(4, 4, 4)
    torch.testing.assert_close(after[:, 1], 2 * before[:, 1] - 3, rtol=0, atol=0.02)
    assert torch.equal(after[:, [0, 2, 3]], before[:, [0, 2, 3]])
    assert 'gamma=1,2,1,1&beta=0,-3,0,0' in page.url


def test_the_sum_and_the_set_follow_the_mouse(page):
    work = page.locator('.x-work')
    for line in (
        '(10 + 4 + 10 + 4 + 4 + 4 + 12 + 12 + 12 + 8 + 8 + 12 + 6 + 8 + 8 + 6) / 16 = 128 / 16 = 8',
        '(2² + 4² + 2² + 4² + 4² + 4² + 4² + 4² + 4² + 0² + 0² + 4² + 2² + 0² + 0² + 2²) / 16'
        ' = 144 / 16 = 9',
        '(10 − 8) / √(9 + 0.00001) ≈ 2 / 3 ≈ 0.67',
    ):
        assert line in work.inner_text()
    number(page, place(3, 2, 4)).hover()
    assert having(page, 'n-lit') == having(page, 'n-lit', 'right') == members('bn', place(3, 2))
    assert 'Image 3, channel 2, bottom right: 6'.lower() in work.inner_text().lower()
    page.mouse.move(1, 1)  # away: the number that is held comes back
    assert having(page, 'n-here') == [0]


@pytest.mark.parametrize('kind', ['bn', 'gn'])
def test_an_edit_marks_what_moves(page, kind):
    at = place(4, 1)
    show(page, f'norm={kind}')
    number(page, at).click()
    number(page, at).click()
    page.keyboard.type('30')
    page.keyboard.press('Enter')
    assert having(page, '*') == [at]
    x = four_images()
    edited = x.clone()
    edited[3, 0, 0, 0] = 30
    sets = stat_sets(kind, x.shape, 2)
    change = (normalize_by_sets(edited, sets) - normalize_by_sets(x, sets)).flatten()
    assert having(page, '▲', 'right') == (change > 1e-6).nonzero().flatten().tolist()
    assert having(page, '▼', 'right') == (change < -1e-6).nonzero().flatten().tolist()
    assert f'{len(members(kind, at))} of 64 move' in page.locator('.n-note').inner_text()
    page.get_by_role('button', name='Undo').click()
    assert torch.equal(numbers(page, 'left'), x.flatten())


def test_a_number_is_dragged(page):
    box = number(page, 0).bounding_box()
    x, y = box['x'] + 10, box['y'] + 10
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)  # five steps of 12 px
    page.mouse.up()
    assert number(page, 0).inner_text() == '15'
    assert page.locator('.x-left td input').count() == 0  # a drag is not a click
    assert page.url.endswith('#edits=1.1.1:15')


def test_the_keyboard_alone(page):
    show(page, 'norm=ln')
    held = 'document.activeElement.dataset.i'
    page.locator('#explorer input').first.focus()
    for _ in range(20):  # by Tab alone into the grid
        page.keyboard.press('Tab')
        if page.evaluate(held):
            break
    for key, there in (
        ('ArrowRight', place(1, 1, 2)),
        ('ArrowRight', place(1, 2)),
        ('ArrowDown', place(1, 2, 3)),
        ('ArrowDown', place(2, 2)),
        ('End', place(2, 4, 2)),
        ('Home', place(2, 1)),
        ('Control+End', place(4, 4, 4)),
        ('ArrowDown', place(4, 4, 4)),
        ('Control+Home', 0),
    ):
        page.keyboard.press(key)
        assert int(page.evaluate(held)) == there, key
        assert having(page, 'n-lit') == members('ln', there)
    for typed, end, text in (
        ('42', 'Escape', '10'),
        ('42', 'Enter', '42'),
        ('−2,5', 'Enter', '−2.5'),
        ('abc', 'Enter', '−2.5'),  # not a number: refused, and the page says so
    ):
        page.keyboard.press('Enter')
        page.keyboard.press('ControlOrMeta+a')
        page.keyboard.type(typed)
        page.keyboard.press(end)
        assert number(page, 0).inner_text() == text, typed
    for where in ('.n-said', '.n-hint'):
        assert 'abc' in page.locator(where).text_content()
    page.keyboard.type('75')  # a digit begins a new number
    page.keyboard.press('Enter')
    page.keyboard.press('+')
    assert number(page, 0).inner_text() == '76'


def test_touch(explorer):
    at = place(2, 3, 4)
    with explorer(viewport=PHONE, has_touch=True, is_mobile=True) as page:
        number(page, at).tap()
        assert having(page, 'n-here') == [at] and page.locator('td input').count() == 0
        number(page, at).tap()
        page.locator('td input').fill('50')
        page.get_by_role('button', name='one more').tap()
        assert number(page, at).inner_text() == '51'
        page.get_by_role('radio', name='instance').tap()
        assert len(having(page, '▲', 'right') + having(page, '▼', 'right')) == 4


def test_training_and_evaluation_mode(page):
    show(page, 'edits=2.1.1:30')
    page.get_by_role('radio', name='eval').click()
    assert having(page, 'n-lit') == [0] and having(page, 'n-kept') == members('bn', 0)[1:]
    assert having(page, '▲', 'right') == [place(2, 1)]
    x, layer = four_images(), torch.nn.BatchNorm2d(4)
    edited = x.clone()
    edited[1, 0, 0, 0] = 30
    for steps in (0, 10, 100):
        page.get_by_role('slider', name='Training steps').fill(str(steps))
        while layer.num_batches_tracked < steps:
            layer(x)
        expected = layer.eval()(edited).detach().flatten()
        layer.train()
        loose = 0.00501 + 0.045 * (expected.abs() >= 10)
        assert ((numbers(page, 'right') - expected).abs() <= loose).all(), steps


def test_a_screen_reader_finds_a_grid_and_hears_the_sum(explorer):
    with explorer() as page:
        tree, said = page.locator('#explorer').aria_snapshot(), page.locator('.n-said')
        for line in (
            'grid "What comes in"', 'columnheader "channel 1"', 'rowheader "image 1"',
            'radio "batch" [checked]', 'gridcell "top left 10" [selected]', 'slider "γ"',
            'table "Out of batch norm, train"', 'combobox "Batch"', 'button "Undo" [disabled]',
        ):  # fmt: skip
            assert line in tree, tree
        assert said.text_content() == ''  # nothing is said before anything is done
        number(page, place(1, 1, 2)).focus()
        told = said.text_content()
        assert 'Mean 8, variance 9. 4 minus 8, divided by 3, is −1.33.' in told
        number(page, place(3, 3)).hover()
        assert said.text_content() == told  # the mouse does not talk


def test_the_address_holds_the_view(page):
    page.get_by_role('radio', name='group', exact=True).click()
    page.get_by_role('combobox', name='Batch').select_option('random')
    page.get_by_role('spinbutton', name='Seed').fill('7')
    page.get_by_role('group', name='Images').get_by_role('radio', name='3').check(force=True)
    number(page, place(2, 2, 2)).focus()
    page.keyboard.press('+')
    view, work = page.evaluate('location.hash.slice(1)'), page.locator('.x-work').inner_text()
    assert view.startswith('norm=gn&batch=random&seed=7&images=3&at=2.2.2&edits=2.2.2:')
    show(page, 'norm=ln')
    show(page, view)
    assert page.locator('.x-work').inner_text() == work
    for strange in (
        'norm=spectral&groups=3&images=9', 'norm=constructor', 'at=9.9.9&edits=1.1.1:x,:',
        'steps=1e9&seed=-1', 'batch=__proto__', 'gamma=1,2&beta=a,b,c,d', '%E0%A4%A',
    ):  # fmt: skip
        show(page, strange)
        assert torch.equal(numbers(page, 'left'), four_images().flatten()), strange
    for link in page.locator('a[data-view]').all():
        view = link.get_attribute('data-view')
        link.click()
        page.wait_for_function("view => location.hash === '#' + view", arg=view)
    show(page, 'norm=ln')
    page.evaluate("location.hash = 'some-heading'")  # a heading of the page: the view stays
    assert page.get_by_role('radio', name='layer', exact=True).is_checked()


# ---- How it looks


def in_view(page, *selectors):
    "Whether all of them are on the screen at once, with room for the bar of the site."
    boxes = [page.locator(s).first.bounding_box() for s in selectors]
    top, bottom = min(b['y'] for b in boxes), max(b['y'] + b['height'] for b in boxes)
    return bottom - top <= page.viewport_size['height'] - 60


def test_cause_and_effect_are_on_one_screen(page):
    page.set_viewport_size(WIDE)
    assert in_view(page, '#explorer .n-controls', '.x-left', '.x-right', '.x-work')
    page.set_viewport_size(PHONE)
    assert in_view(page, '.x-left', '.x-right table')


def test_every_text_can_be_read(page):
    for theme in pages.each_theme(page):
        for view in ('norm=bn&edits=1.1.2:33', 'norm=lnc&batch=random', 'view=all&mode=eval'):
            show(page, view)
            assert page.evaluate(pages.FAINT, '#explorer') == [], (theme, view)


@pytest.mark.parametrize('width', [360, 820, 1920])
def test_nothing_is_wider_than_the_screen(page, width):
    page.set_viewport_size({'width': width, 'height': 740})
    for view in ('norm=gn&edits=1.1.1:-99&batch=random', 'mode=eval', 'view=all'):
        show(page, view)
        assert page.evaluate('document.documentElement.scrollWidth') <= width, view
        cut = page.locator('#explorer :is(b, span, button)').evaluate_all(
            'all => all.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth)'
            '.map(e => e.textContent)'
        )
        assert cut == [], view


def test_motion_print_system_colours_and_no_script(explorer):
    lasts = 'b => getComputedStyle(b).transitionDuration'
    with explorer(reduced_motion='no-preference') as page:
        assert page.locator('.n-grid b').first.evaluate(lasts) != '0s'
        page.get_by_role('radio', name='layer', exact=True).click()
        page.wait_for_function(  # the numbers arrive
            "document.querySelector('.x-right b').textContent === '1'"
        )
    with explorer('norm=gn&edits=1.1.1:30', forced_colors='active') as page:
        assert page.locator('.n-grid b').first.evaluate(lasts) == '0s'
        edges = [
            page.locator(f'.x-left [data-i]{which} b').first.evaluate(
                'b => getComputedStyle(b).borderTopColor'
            )
            for which in ('.n-lit:not(.n-here)', ':not(.n-lit)')
        ]
        assert edges[0] != edges[1]
        page.emulate_media(media='print')
        assert not page.locator('.n-controls').first.is_visible()
        assert page.locator('.x-right table').is_visible()
    with explorer(java_script_enabled=False) as page:
        assert 'needs JavaScript' in page.locator('#explorer').inner_text()
        target = page.locator('#explorer a').get_attribute('href')
        assert (pages.LEARN / target).exists()
