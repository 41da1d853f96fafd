"""The explorer: its arithmetic against torch, and the page by mouse, touch and keyboard."""

import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from normnotes.sets import NORMS, divisors, four_images, normalize_by_sets, set_stats, stat_sets

NBS = Path(__file__).resolve().parent.parent / 'nbs'
HOME = NBS / 'learn'  # where the page and its script are
KINDS = ('bn', 'ln', 'gn', 'in', 'lnc')
MINUS = str.maketrans('−', '-')


# The arithmetic: the same cases in a browser, in Node and in Python

COMPUTE = """cases => cases.map(({x, shape, kind, groups, steps}) => {
  const sets = api.statSets(kind, shape, groups), running = api.runningStats(x, shape, steps);
  return {sets, ...api.setStats(x, sets), normalized: api.normalize(x, shape, kind, groups),
          running, evaluated: api.normalize(x, shape, 'bn', groups, running)};
})"""


def cases(count=150):
    "Random batches: whole numbers or fractions, of many shapes, some with a constant image."
    chance = random.Random(0)
    for trial in range(count):
        channels = chance.choice((1, 2, 3, 4, 6, 8, 12))
        shape = [chance.randint(1, 5), channels, chance.randint(1, 4), chance.randint(2, 4)]
        size = math.prod(shape)
        x = [chance.randint(-9, 99) if trial % 2 else chance.gauss(3, 10) for _ in range(size)]
        if trial % 5 == 0:
            x[: size // shape[0]] = [7.0] * (size // shape[0])
        kind = KINDS[trial % 5]
        groups = chance.choice(divisors(channels)) if kind == 'gn' else None
        yield {
            'x': x,
            'shape': shape,
            'kind': kind,
            'groups': groups,
            'steps': chance.choice((0, 1, 2, 10, 40)),
        }


def check_arithmetic(results):
    asked = list(cases())
    assert len(results) == len(asked) == 150
    for case, result in zip(asked, results, strict=True):
        x = torch.tensor(case['x'], dtype=torch.float64).view(case['shape'])
        sets = stat_sets(case['kind'], x.shape, case['groups'])
        mean, var = set_stats(x, sets)
        assert result['sets'] == sets.flatten().tolist()
        assert result['count'] == sets.flatten().bincount().tolist()
        close(result['mean'], mean)
        close(result['variance'], var)
        close(result['normalized'], normalize_by_sets(x, sets))

        layer = torch.nn.BatchNorm2d(x.shape[1]).double()
        for _ in range(case['steps']):
            layer(x)
        close(result['running']['mean'], layer.running_mean)
        close(result['running']['variance'], layer.running_var)
        close(result['evaluated'], layer.eval()(x))


def close(found, expected):
    found = torch.tensor(found, dtype=torch.float64)
    torch.testing.assert_close(found, expected.detach().flatten(), rtol=1e-9, atol=1e-9)


def test_the_arithmetic_in_node(tmp_path):
    node = shutil.which('node')
    if node is None:
        pytest.skip('no Node on the PATH')
    (tmp_path / 'cases.json').write_text(json.dumps(list(cases())), encoding='utf-8')
    script = f'const api = require({json.dumps(str(HOME / "explorer.js"))});\n' + (
        f"console.log(JSON.stringify(({COMPUTE})(JSON.parse(require('fs').readFileSync('cases.json')))))"
    )
    done = subprocess.run(
        [node, '-e', script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    check_arithmetic(json.loads(done.stdout))


def test_the_arithmetic_in_the_browser(explorer):
    compute = (
        COMPUTE.replace('cases =>', 'cases => { const api = normnotesExplorer; return', 1) + '}'
    )
    check_arithmetic(explorer().evaluate(compute, list(cases())))


def test_what_the_page_takes_from_the_book(explorer):
    page = explorer()
    assert page.evaluate('normnotesExplorer.fourImages()') == four_images().flatten().tolist()
    norms = page.evaluate('normnotesExplorer.NORMS')
    assert {kind: row[:2] for kind, row in norms.items()} == {
        kind: [norm.full, norm.color] for kind, norm in NORMS.items() if norm.sets
    }
    assert page.evaluate('normnotesExplorer.divisors(12)') == divisors(12)
    call = "normnotesExplorer.statSets('gn', [1, 4, 2, 2], 3)"
    wrong = f'() => {{ try {{ {call} }} catch (error) {{ return error.message }} }}'
    assert page.evaluate(wrong) == 'groups=3 does not divide 4 channels; use 1, 2 or 4'


# The page


@pytest.fixture(scope='module')
def site(serve, tmp_path_factory):
    "A page of what the notebook brings, with the stylesheet and Quarto's names of the themes."
    folder = tmp_path_factory.mktemp('explorer')
    cells = json.loads((HOME / 'explorer.ipynb').read_text(encoding='utf-8'))['cells']
    texts = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown']
    block = next(
        re.search(r'<link.*</script>', text, flags=re.S)[0] for text in texts if '<script' in text
    )
    links = re.findall(r'<a [^>]*data-view=.*?</a>', '\n'.join(texts), flags=re.S)
    for path in (HOME / 'explorer.js', HOME / 'explorer.css', NBS / 'styles.css'):
        shutil.copy(path, folder)
    (folder / 'page.html').write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>The explorer</title>'
        '<link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="styles.css"><style>body { margin: 0 auto; padding: 12px; '
        'max-width: 850px; font: 16px sans-serif; background: #fff }'
        'body.quarto-dark { background: #222 }</style></head>'
        f'<body class="quarto-light"><main>{block}<p>{" ".join(links)}</p></main></body></html>',
        encoding='utf-8',
    )
    return serve(folder) + '/page.html'


@pytest.fixture
def explorer(chromium, site):
    "explorer('norm=gn', viewport=...) opens the page; no error or outside request may follow."
    contexts, faults = [], []

    def open_page(view='', dark=False, **options):
        options = {
            'viewport': {'width': 900, 'height': 1000},
            'reduced_motion': 'reduce',
            **options,
        }
        contexts.append(chromium.new_context(**options))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        page.on(
            'console',
            lambda message: message.type in ('error', 'warning') and faults.append(message.text),
        )
        page.on('pageerror', lambda error: faults.append(str(error)))
        page.on('requestfailed', lambda request: faults.append(f'failed: {request.url}'))
        home = site.rsplit('/', 1)[0]
        page.on(
            'request',
            lambda request: request.url.startswith((home, 'data:')) or faults.append(request.url),
        )
        page.on(
            'response',
            lambda response: response.ok or faults.append(f'{response.status}: {response.url}'),
        )
        page.goto(f'{site}#{view}' if view else site)
        if dark:
            page.evaluate("document.body.className = 'quarto-dark'")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def number(page, i, side='in'):
    return page.locator(f".x-{side} [data-i='{i}']")


def place(image, channel, pixel=1):
    "The place of a number in the batch, everything counted from 1."
    return (image - 1) * 16 + (channel - 1) * 4 + pixel - 1


def having(page, what, side='in'):
    "The places of the numbers that have a class or a mark."
    chosen = f'.{what}' if what.startswith('x-') else f"[data-mark='{what}']"
    return [
        int(i)
        for i in page.locator(f'.x-{side} {chosen}').evaluate_all(
            'all => all.map(td => td.dataset.i)'
        )
    ]


def numbers(page, side):
    texts = page.locator(f'.x-{side} tbody:not([hidden]) b').all_text_contents()
    order = page.locator(f'.x-{side} tbody:not([hidden]) [data-i]').evaluate_all(
        'all => all.map(td => +td.dataset.i)'
    )
    return torch.tensor([float(texts[order.index(i)].translate(MINUS)) for i in range(len(order))])


def members(kind, i, images=4, groups=2):
    sets = stat_sets(kind, (images, 4, 2, 2), groups).flatten()
    return (sets == sets[i]).nonzero().flatten().tolist()


def told(page):
    return page.locator('.x-said').text_content()


@pytest.mark.parametrize('kind', KINDS)
def test_every_norm_on_every_batch_shows_what_the_book_computes(explorer, kind):
    page = explorer()
    for groups in divisors(4) if kind == 'gn' else [2]:
        for batch in ('book', 'random', 'constant', 'bright'):
            for images in (1, 4):
                show(page, f'norm={kind}&groups={groups}&batch={batch}&seed=5&images={images}')
                assert page.locator('.x-in tbody:not([hidden])').count() == images
                x = numbers(page, 'in').view(images, 4, 2, 2)
                expected = normalize_by_sets(x, stat_sets(kind, x.shape, groups)).flatten()
                torch.testing.assert_close(numbers(page, 'out'), expected, rtol=0, atol=0.00501)


def test_the_mouse_lights_a_set(explorer):
    page = explorer()
    number(page, place(3, 2, 4)).hover()
    assert sorted(having(page, 'x-lit')) == members('bn', place(3, 2))
    assert having(page, 'x-lit', 'out') == having(page, 'x-lit')
    work = page.locator('.x-work')
    assert 'Image 3, channel 2, bottom right: 6'.lower() in work.inner_text().lower()
    assert 'channel 2 of all 4 images: 16 numbers, one of 4 sets' in work.inner_text()
    page.mouse.move(1, 1)  # away: the number that is held comes back
    assert sorted(having(page, 'x-lit')) == members('bn', 0)
    assert having(page, 'x-here') == [0]
    number(page, place(4, 1), 'out').hover()  # the other table answers as well
    assert having(page, 'x-here') == [place(4, 1)]


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


@pytest.mark.parametrize('kind', KINDS)
def test_the_set_of_every_norm(explorer, kind):
    page = explorer()
    at = place(2, 3, 2)
    for groups in divisors(4):
        show(page, f'norm={kind}&groups={groups}&at=2.3.2')
        assert having(page, 'x-here') == [at]
        assert sorted(having(page, 'x-lit')) == members(kind, at, groups=groups)
        # lit by more than colour: by a border, and by a word for those who hear it
        assert page.locator('.x-in [aria-selected=true]').count() == len(
            members(kind, at, groups=groups)
        )
        edges = 'all => new Set(all.map(b => getComputedStyle(b).borderTopColor)).size'
        assert page.locator('.x-in .x-lit:not(.x-here) b').evaluate_all(edges) == 1
        assert page.locator('.x-in td:not(.x-here) b').evaluate_all(edges) == 2


def test_the_sum_of_the_book(explorer):
    text = explorer().locator('.x-work').inner_text()
    for line in (
        '(10 + 4 + 10 + 4 + 4 + 4 + 12 + 12 + 12 + 8 + 8 + 12 + 6 + 8 + 8 + 6) / 16 = 128 / 16 = 8',
        '(2² + 4² + 2² + 4² + 4² + 4² + 4² + 4² + 4² + 0² + 0² + 4² + 2² + 0² + 0² + 2²) / 16 = '
        '144 / 16 = 9',
        '(10 − 8) / √(9 + 0.00001) ≈ 2 / 3 ≈ 0.67',
    ):
        assert line in text


def test_only_groups_that_divide_are_offered(explorer):
    page = explorer()
    assert not page.get_by_role('group', name='Groups').is_visible()
    page.get_by_role('radio', name='group', exact=True).click()
    offered = page.get_by_role('group', name='Groups').get_by_role('radio')
    assert offered.evaluate_all('all => all.map(radio => +radio.value)') == divisors(4)
    offered.last.click()
    assert sorted(having(page, 'x-lit')) == members('in', 0)
    assert not page.get_by_role('group', name='Mode').is_visible()


@pytest.mark.parametrize('kind', KINDS)
def test_an_edit_marks_what_moves(explorer, kind):
    page = explorer(f'norm={kind}')
    at = place(4, 1)
    number(page, at).click()
    number(page, at).click()
    page.keyboard.type('30')
    page.keyboard.press('Enter')
    assert number(page, at).text_content() == '30'
    assert having(page, '*') == [at]
    moved, stay = having(page, '▲', 'out') + having(page, '▼', 'out'), having(page, '=', 'out')
    x = four_images()
    edited = x.clone()
    edited[3, 0, 0, 0] = 30
    sets = stat_sets(kind, x.shape, 2)
    change = (normalize_by_sets(edited, sets) - normalize_by_sets(x, sets)).flatten()
    assert sorted(having(page, '▲', 'out')) == (change > 1e-6).nonzero().flatten().tolist()
    assert sorted(moved) == (change.abs() > 1e-6).nonzero().flatten().tolist() == members(kind, at)
    assert sorted(moved + stay) == list(range(64))
    where = 'in images 1, 2, 3 and 4' if kind == 'bn' else 'in image 4'
    note = f'{len(moved)} of 64 move (▲ up, ▼ down), {where}. {len(stay)} stay (=).'
    assert page.locator('.x-note').text_content() == note
    assert note in told(page)
    page.get_by_role('button', name='Undo edits').click()
    assert having(page, '*') == having(page, '=', 'out') == []
    assert torch.equal(numbers(page, 'in'), x.flatten())


def test_the_buttons_step(explorer):
    page = explorer()
    page.get_by_role('button', name='one more').click(click_count=3)
    assert number(page, 0).text_content() == '13'
    page.get_by_role('button', name='one less').click()
    assert number(page, 0).text_content() == '12'
    assert page.get_by_role('button', name='one less').evaluate('b => b === document.activeElement')


def test_what_is_no_number_is_refused(explorer):
    page = explorer()
    for typed in ('abc', '1000', '1-2', '', '1e'):
        number(page, 0).focus()
        page.keyboard.press('Enter')
        page.keyboard.press('ControlOrMeta+a')
        page.keyboard.press('Delete')
        page.keyboard.type(typed)
        page.keyboard.press('Enter')
        assert number(page, 0).text_content() == '10', typed
        assert f'“{typed}” is no number from −99 to 99; the 10 stays' in told(page)
        assert page.locator('#x-hint').text_content() == told(page)
    page.keyboard.press('Enter')
    page.keyboard.type('−2,5')
    page.keyboard.press('Enter')
    assert number(page, 0).text_content() == '−2.5'
    assert 'arrows move' in page.locator('#x-hint').text_content()


def test_the_keyboard_alone(explorer):
    page = explorer('norm=ln')

    def held():
        return int(page.evaluate('document.activeElement.dataset.i'))

    stops = page.locator(".x-in [tabindex='0']")
    assert stops.count() == 1 and stops.get_attribute('data-i') == '0'
    for _ in range(20):  # by Tab alone into the grid
        page.keyboard.press('Tab')
        if page.evaluate('document.activeElement.dataset.i'):
            break
    assert held() == 0
    outline = number(page, 0).locator('b').evaluate('b => getComputedStyle(b).outlineStyle')
    assert outline == 'solid'
    for key, there in (
        ('ArrowRight', place(1, 1, 2)), ('ArrowRight', place(1, 2, 1)),
        ('ArrowDown', place(1, 2, 3)), ('ArrowDown', place(2, 2, 1)),
        ('ArrowLeft', place(2, 1, 2)), ('End', place(2, 4, 2)), ('ArrowRight', place(2, 4, 2)),
        ('Home', place(2, 1, 1)), ('Control+End', place(4, 4, 4)), ('ArrowDown', place(4, 4, 4)),
        ('Control+Home', 0), ('ArrowUp', 0), ('ArrowDown', place(1, 1, 3)),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert held() == there, key
        assert sorted(having(page, 'x-lit')) == members('ln', there)
        assert page.locator(".x-in [tabindex='0']").count() == 1
    page.keyboard.press('Control+Home')
    page.keyboard.press('Enter')
    page.keyboard.type('42')
    page.keyboard.press('Escape')
    assert (held(), number(page, 0).text_content()) == (0, '10')
    page.keyboard.press('Enter')
    page.keyboard.type('42')
    page.keyboard.press('Enter')
    assert (held(), number(page, 0).text_content()) == (0, '42')
    page.keyboard.press('7')  # a digit begins a new number
    page.keyboard.press('5')
    page.keyboard.press('Enter')
    assert number(page, 0).text_content() == '75'
    for key, text in (('+', '76'), ('-', '75'), ('-', '74')):
        page.keyboard.press(key)
        assert number(page, 0).text_content() == text
    page.keyboard.press('Enter')
    page.keyboard.type('8')
    page.keyboard.press('Tab')  # leaving keeps what is typed
    assert number(page, 0).text_content() == '8'


def test_touch(explorer):
    page = explorer(viewport={'width': 390, 'height': 800}, has_touch=True, is_mobile=True)
    at = place(2, 3, 4)
    number(page, at).tap()
    assert having(page, 'x-here') == [at]
    assert sorted(having(page, 'x-lit')) == members('bn', at)
    assert page.locator('.x-in input').count() == 0
    number(page, at).tap()
    page.locator('.x-in input').fill('50')
    page.get_by_role('button', name='one more').tap()
    assert number(page, at).text_content() == '51'
    assert len(having(page, '▲', 'out') + having(page, '▼', 'out')) == 16
    page.get_by_role('radio', name='instance').tap()
    assert len(having(page, '▲', 'out') + having(page, '▼', 'out')) == 4


def test_train_and_eval(explorer):
    page = explorer('edits=2.1.1:30&at=1.1.1')
    assert len(having(page, '=', 'out')) == 48
    layer = torch.nn.BatchNorm2d(4)
    x, edited = four_images(), four_images()
    edited[1, 0, 0, 0] = 30
    for _ in range(10):
        layer(x)
    text = page.locator('.x-work').inner_text()
    kept = layer.running_mean[0].item(), layer.running_var[0].item()
    layer(edited)  # what this training step would keep
    assert f'step 11: 0.9 × {kept[0]:.2f} + 0.1 × {9.625:.2f}'.replace('9.62', '9.63') in text
    assert f'≈ {layer.running_mean[0]:.2f}' in text and f'≈ {layer.running_var[0]:.2f}' in text

    page.get_by_role('radio', name='eval').click()
    assert having(page, 'x-lit') == [0]  # no other number is in the sum
    assert sorted(having(page, 'x-kept')) == members('bn', 0)[1:]
    assert having(page, '▲', 'out') == [place(2, 1)] and len(having(page, '=', 'out')) == 63
    layer = torch.nn.BatchNorm2d(4)
    for steps in (0, 1, 10, 100):
        page.get_by_role('slider').fill(str(steps))
        while layer.num_batches_tracked < steps:
            layer(x)
        layer.eval()
        expected = layer(edited).detach().flatten()
        layer.train()
        shown = numbers(page, 'out')
        assert ((shown - expected).abs() <= 0.00501 + 0.045 * (expected.abs() >= 10)).all(), steps
    text = page.locator('.x-work').inner_text()
    assert 'step 100: 0.9 × 8 + 0.1 × 8 ≈ 8' in text
    assert 'where 9.6 = 144 / 15 is the unbiased variance' in text
    page.get_by_role('slider').fill('0')
    assert '0, as in a new layer' in page.locator('.x-work').inner_text()


def test_a_screen_reader_finds_a_grid_and_hears_the_sum(explorer):
    page = explorer()
    tree = page.locator('#explorer').aria_snapshot()
    for line in (
        'grid "What comes in"', 'columnheader "channel 1"', 'rowheader "image 1"',
        'radio "batch" [checked]', 'gridcell "top left 10" [selected]', 'gridcell "top left 4"',
        'slider "Training steps so far: 10"', 'table "What comes out of batch norm, train"',
        'combobox "Batch"', 'button "Undo edits" [disabled]',
    ):  # fmt: skip
        assert line in tree, tree
    assert told(page) == ''  # nothing is said before anything is done
    number(page, place(1, 1, 2)).focus()
    assert told(page).startswith(
        'image 1, channel 1, top right. Shares with channel 1 of all 4 images: 16 numbers'
    )
    assert 'Mean 8, variance 9. 4 minus 8, divided by 3, is −1.33.' in told(page)
    before = told(page)
    number(page, place(3, 3)).hover()
    assert told(page) == before  # the mouse does not talk


def luminance(color):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), channels, strict=True))


def rgb(text):
    "'rgb(1, 2, 3)' or 'color(srgb 0.1 0.2 0.3)' as numbers from 0 to 1; None if transparent."
    values = [float(v) for v in re.findall(r'-?[\d.]+', text.replace('srgb', ''))]
    if len(values) > 3 and values[3] < 1:
        return None
    return [v if 'color(' in text else v / 255 for v in values[:3]]


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('kind', KINDS)
def test_every_text_can_be_read_in_both_themes(explorer, kind, dark):
    page = explorer(f'norm={kind}&edits=1.1.2:33&batch=random', dark=dark)
    texts = page.evaluate("""() => {
      const found = [];
      for (const element of document.querySelectorAll('#explorer *')) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility() || element.closest('.x-said, option')) continue;
        const backs = [];
        for (let up = element; up; up = up.parentElement)
          backs.push(getComputedStyle(up).backgroundColor);
        const style = getComputedStyle(element);
        const ink = element.closest('svg') ? style.fill : style.color;
        found.push([element.textContent.trim().slice(0, 30), ink, backs]);
      }
      return found;
    }""")
    assert len(texts) > 150
    for text, ink, backs in texts:
        back = next(color for color in map(rgb, backs) if color)
        light, deep = sorted((luminance(rgb(ink)), luminance(back)), reverse=True)
        assert (light + 0.05) / (deep + 0.05) >= 4.5, (text, ink, backs)
    # the border of a lit number stands out from the page as well
    lit = page.locator('.x-in .x-lit:not(.x-here) b').first
    edge = luminance(rgb(lit.evaluate('b => getComputedStyle(b).borderTopColor')))
    paper = luminance(rgb(page.evaluate('getComputedStyle(document.body).backgroundColor')))
    light, deep = sorted((edge, paper), reverse=True)
    assert (light + 0.05) / (deep + 0.05) >= 3


@pytest.mark.parametrize('width', [320, 360, 820, 1400])
def test_nothing_is_wider_than_the_screen(explorer, width):
    page = explorer(viewport={'width': width, 'height': 740})
    for view in (
        'norm=bn',
        'norm=gn&edits=1.1.1:-99&batch=random',
        'norm=lnc',
        'mode=eval&edits=1.1.1:-98.5',
    ):
        show(page, view)
        assert page.evaluate('document.documentElement.scrollWidth') <= width, view
        cut = page.locator('#explorer :is(b, span, button, dd)').evaluate_all(
            'all => all.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth)'
            '.map(e => e.textContent)'
        )
        assert cut == [] or width < 360, view
    if width >= 360:
        for selector, least in (
            ('.x-in [data-i]', 32),
            ('#explorer button', 44),
            ('.x-controls fieldset label', 44),
        ):
            boxes = page.locator(selector).evaluate_all(
                'all => all.map(e => e.getBoundingClientRect().toJSON())'
            )
            assert (
                min(box[side] for box in boxes if box['width'] for side in ('width', 'height'))
                >= least
            ), selector


def test_the_address_holds_the_view(explorer):
    page = explorer()
    assert page.evaluate('location.hash') == ''
    page.get_by_role('radio', name='group', exact=True).click()
    page.get_by_role('combobox', name='Batch').select_option('random')
    page.get_by_role('spinbutton', name='Seed').fill('7')
    page.get_by_role('group', name='Images').get_by_role('radio', name='3').click()
    number(page, place(2, 2, 2)).click()
    page.keyboard.press('+')
    value = number(page, place(2, 2, 2)).text_content()
    view = page.evaluate('location.hash.slice(1)')
    assert view == f'norm=gn&batch=random&seed=7&images=3&at=2.2.2&edits=2.2.2:{value}'
    again = explorer(view)
    assert torch.equal(numbers(again, 'in'), numbers(page, 'in'))
    assert again.locator('.x-work').inner_text() == page.locator('.x-work').inner_text()
    assert having(again, '*') == [place(2, 2, 2)]


def test_a_strange_address_does_no_harm(explorer):
    page = explorer()
    address = page.url
    for view in (
        'norm=spectral&groups=3&images=9', 'norm=constructor', 'at=9.9.9&edits=1.1.1:x,5.1.1:3,:',
        'at=1.1.1', 'steps=1e9&seed=-1', 'batch=__proto__', 'some-heading', '%E0%A4%A',
        'images=1&at=4.1.1', 'mode=eval&steps=&edits=',
    ):  # fmt: skip
        page.goto(f'{address}?{len(view)}#{view}')
        images = page.locator('.x-in tbody:not([hidden])').count()
        assert images == (1 if 'images=1' in view else 4)
        assert torch.equal(numbers(page, 'in'), four_images().flatten()[: 16 * images]), view
        assert len(having(page, 'x-here')) == 1, view


def test_links_of_the_text_show_a_view(explorer):
    page = explorer()
    links = page.locator('a[data-view]')
    assert links.count() > 5
    for link in links.all():
        view = link.get_attribute('data-view')
        link.click()
        page.wait_for_function("view => location.hash === '#' + view", arg=view)
        page.wait_for_timeout(50)
        for part in view.split('&'):
            key, value = part.split('=')
            if key in ('norm', 'mode', 'images'):
                assert page.locator(f"[name={key}][value='{value}']").is_checked()
    page.evaluate("location.hash = 'some-heading'")  # a heading of the page: the view stays
    assert page.locator('[name=norm][value=ln]').is_checked()


def test_without_javascript_there_is_a_sentence(explorer):
    page = explorer(java_script_enabled=False)
    assert 'needs JavaScript' in page.locator('#explorer').inner_text()
    assert 'draw_sets([' in page.locator('#explorer').inner_text()
    target = page.locator('#explorer a').get_attribute('href')
    assert (HOME / target).exists()


def test_print_and_reduced_motion(explorer):
    lasts = 'b => getComputedStyle(b).transitionDuration'
    assert explorer(reduced_motion='no-preference').locator('.x-in b').first.evaluate(lasts) != '0s'
    page = explorer('norm=gn&edits=1.1.1:30', dark=True)
    assert page.locator('.x-in b').first.evaluate(lasts) == '0s'
    page.emulate_media(media='print')
    assert not page.locator('.x-controls').is_visible() and page.locator('.x-out').is_visible()
    assert (
        luminance(
            rgb(page.locator('.x-in .x-lit b').first.evaluate('b => getComputedStyle(b).color'))
        )
        < 0.05
    )


def test_what_is_lit_and_chosen_shows_in_the_systems_own_colours(explorer):
    page = explorer('norm=gn', forced_colors='active')
    edge = 'b => getComputedStyle(b).borderTopColor'
    lit, unlit = (
        page.locator(f'.x-in [data-i]{which} b').first
        for which in ('.x-lit:not(.x-here)', ':not(.x-lit)')
    )
    assert lit.evaluate(edge) != unlit.evaluate(edge)
    choices = '.x-controls fieldset input'
    chosen, other = (
        page.locator(f'{choices}{which} + span').first for which in (':checked', ':not(:checked)')
    )
    assert chosen.evaluate(edge) != other.evaluate(edge)
    assert (
        page.locator('.x-in .x-here b').evaluate('b => getComputedStyle(b).outlineStyle') == 'solid'
    )


def test_it_is_small_and_asks_nobody():
    script, style = (
        (HOME / name).read_text(encoding='utf-8') for name in ('explorer.js', 'explorer.css')
    )
    assert len(script.encode()) < 24_000 and len(style.encode()) < 9_000
    assert not re.search(
        r'https?://|@import|fetch\(|XMLHttpRequest|sendBeacon|import\(', script + style
    )
