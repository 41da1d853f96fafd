"""The tour and the page on choosing a norm: every scene by mouse, touch and keyboard."""

import json
import re
import shutil

import pages
import pytest
import torch

from normnotes.sets import NORMS, four_images, normalize_by_sets, set_stats, stat_sets

KINDS = ('bn', 'ln', 'gn', 'in')
PHONE = {'viewport': {'width': 390, 'height': 844}, 'has_touch': True, 'is_mobile': True}


@pytest.fixture(scope='module')
def site(serve, tmp_path_factory):
    folder = tmp_path_factory.mktemp('tour')
    for name in ('tour', 'which_norm'):
        pages.build(name, folder)
    return serve(folder)


@pytest.fixture(scope='module')
def tour(chromium, site):
    "tour(has_touch=True, ...) opens the tour, without the networks of its first scene."
    address = f'{site}/tour.html'
    return lambda **options: pages.opened(chromium, address, without='playground.js', **options)


@pytest.fixture(scope='module')
def page(tour):
    "The tour, in a window that the tests of scenes share."
    with tour() as page:
        yield page


@pytest.fixture(scope='module')
def which(chromium, site):
    with pages.opened(chromium, f'{site}/which_norm.html') as page:
        yield page


def scene(page, name):
    return page.locator(f'[data-scene={name}]')


def words(page, name):
    return scene(page, name).locator('.t-words').inner_text()


def shown(v):
    "A number as the page writes it."
    return (
        f'{round(v.item() if isinstance(v, torch.Tensor) else v, 2) + 0.0:.2f}'.rstrip('0')
        .rstrip('.')
        .replace('-', '−')
    )


def outputs(kind, x=None):
    x = four_images() if x is None else x
    return normalize_by_sets(x.double(), stat_sets(kind, x.shape, 2))


CHANNEL = four_images()[:, 0].flatten().double()  # the sixteen numbers of channel 1


# ---- Scene by scene, by mouse


def test_break_it_trains(chromium, site):
    with pages.opened(chromium, f'{site}/tour.html') as page:
        toy = page.locator('#two-networks')
        toy.get_by_role('button', name='Play').click()
        page.wait_for_function("+document.querySelector('#two-networks').dataset.steps > 3")
        toy.get_by_role('button', name='Pause').click()


def test_one_number_lights_its_set_under_every_norm(page):
    root, x = scene(page, 'bright'), four_images()
    for i in (0, 22, 63):
        root.locator(f".n-grid:not(.n-small) [data-i='{i}']").hover()
        for kind in KINDS:
            one, sets = root.locator(f'[data-kind={kind}]'), stat_sets(kind, x.shape, 2)
            lit = one.locator('.n-lit').evaluate_all('all => all.map(td => +td.dataset.i)')
            assert sorted(lit) == (sets.flatten() == sets.flatten()[i]).nonzero().flatten().tolist()
            mean = set_stats(x, sets)[0][sets.flatten()[i]]
            y = outputs(kind).flatten()[i]
            facts = f'mean {shown(mean)}: {shown(x.flatten()[i])} becomes {shown(y)}'
            assert one.locator('p').inner_text() == facts


def test_slide_and_stretch(page):
    root = scene(page, 'slide')
    assert not root.locator('.t-formula').is_visible()  # the formula comes last
    root.get_by_role('button', name='Subtract').click()
    assert 'mean is 0, the spread is 3, and the 10 is now at 2.' in words(page, 'slide')
    root.get_by_role('button', name='Divide').click()
    assert 'the spread is 1, and the 10 is now at 0.67.' in words(page, 'slide')
    root.get_by_role('slider', name='γ').fill('3')
    root.get_by_role('slider', name='β').fill('8')
    assert 'mean is 8, the spread is 3, and the 10 is now at 10.' in words(page, 'slide')
    assert root.locator('.t-formula .t-now').inner_text() == 'β'
    root.get_by_role('button', name='Start again').click()
    assert 'the 10 is now at 10' in words(page, 'slide')


def test_only_batch_norm_looks_at_other_images(page):
    root, x = scene(page, 'brightness'), four_images()
    x[3] *= 3
    root.get_by_role('slider').fill('3')
    for kind in KINDS:
        far = (outputs(kind, x) - outputs(kind))[0].abs().max()
        text = 'stands still' if kind != 'bn' else f'moved by up to {shown(far)}'
        assert root.locator(f'[data-kind={kind}] p').inner_text() == text


def test_a_batch_of_two_says_plus_or_minus_one(page):
    root = scene(page, 'pair')
    count, mine = root.get_by_role('slider').all()
    for images, number in ((8, 5), (5, 2.5), (2, 5), (2, 12), (2, 0)):
        count.fill(str(images))
        mine.fill(str(number))
        batch = torch.tensor([number, 3, 9, 12, 1, 7, 4, 11][:images], dtype=torch.float64)
        y = (batch - batch.mean()) / (batch.var(unbiased=False) + 1e-5).sqrt()
        assert words(page, 'pair').endswith(f'it becomes {shown(y[0])}.')
        assert images > 2 or shown(y[0]) == ('1' if number > 3 else '−1')


def test_the_running_mean_follows(page):
    root, layer = scene(page, 'running'), torch.nn.BatchNorm2d(4).double()
    root.get_by_role('radio', name='evaluation').check(force=True)
    for steps in (0, 10, 20):
        if steps:
            root.get_by_role('button', name='ten steps').click()
        while layer.num_batches_tracked < steps:
            layer(four_images().double())
        y = layer.eval()(four_images().double())[0, 0, 0, 0]
        layer.train()
        assert f'(10 − {shown(layer.running_mean[0])})' in words(page, 'running')
        assert f' {shown(y)}. In training it was 0.67' in words(page, 'running')


def test_going_back_is_autograd(tour):
    wishes = {
        'raise the 10 alone': torch.eye(16)[0],
        'raise all by the same': torch.ones(16),
        'spread them out': (CHANNEL - 8) / 3,
        'raise image 1': (torch.arange(16) < 4).double(),
    }
    with tour() as page:
        root = scene(page, 'back')
        for wish, grad in wishes.items():
            x = CHANNEL.clone().requires_grad_()
            std = (x.var(unbiased=False) + 1e-5).sqrt()
            (((x - x.mean()) / std) * grad).sum().backward()
            straight, true = shown((grad / std).abs().max()), x.grad
            root.get_by_role('radio', name=wish).check(force=True)
            if true.abs().max() < 1e-3:
                assert 'Nothing arrives' in words(page, 'back')
            else:
                assert f'up to {straight}.' in words(page, 'back')
                assert f'largest is {shown(true.abs().max())}' in words(page, 'back')
                assert f'add up to {shown(true.sum())}.' in words(page, 'back')
            root.get_by_role('radio', name='constants').check(force=True)
            assert root.locator('.t-path-1 path, .t-path-2 path').count() == 0
            assert f'up to {straight}, goes straight through' in words(page, 'back')
            root.get_by_role('radio', name='follow').check(force=True)


def test_longer_weights_get_shorter_gradients(page):
    found = page.evaluate(
        "import('./tour.js').then(t => ({pairs: t.PAIRS, pull: t.PULL,"
        ' grads: [1, 2, 4].map(k => t.weightGradient([0.8 * k, 0.6 * k]))}))'
    )
    pairs, pull = (torch.tensor(found[k], dtype=torch.float64) for k in ('pairs', 'pull'))
    for k, grad in zip((1, 2, 4), found['grads'], strict=True):
        w = torch.tensor([0.8 * k, 0.6 * k], dtype=torch.float64, requires_grad=True)
        z = pairs @ w
        (((z - z.mean()) / (z.var(unbiased=False) + 1e-5).sqrt()) * pull).sum().backward()
        torch.testing.assert_close(torch.tensor(grad, dtype=torch.float64), w.grad)
        scene(page, 'scale').get_by_role('slider').fill(str(k))
        assert f'gradient is {shown(1 / k)} times as long' in words(page, 'scale')


def test_the_film_can_be_scrubbed_and_played(page):
    root, film = scene(page, 'film'), page.evaluate("import('./film.js').then(f => f.FILM)")
    assert all(
        len(film[k]['accuracy']) * 72 == len(film[k]['maps']) == len(film['frames']) * 72
        for k in ('ln', 'bn')
    )
    for step in (120, 130, 300):
        at = film['frames'].index(step)
        root.get_by_role('slider').fill(str(at))
        assert f'Step {step}' in words(page, 'film')
        for kind in ('ln', 'bn'):
            text = root.locator('figure', has_text=NORMS[kind].full).inner_text()
            assert f'right: {round(film[kind]["accuracy"][at])} %' in text
    at = film['frames'].index(130)  # as the text says: the six rows become one row
    rows = {kind: film[kind]['maps'][72 * at : 72 * at + 72] for kind in ('ln', 'bn')}
    rows = {kind: {text[i : i + 12] for i in range(0, 72, 12)} for kind, text in rows.items()}
    assert len(rows['ln']) <= 3 and len(rows['bn']) == 6
    assert film['ln']['share'][at] < 1 < 25 < min(film['bn']['share'])
    assert film['ln']['accuracy'][-1] == 10 and film['bn']['accuracy'][-1] > 80
    root.get_by_role('slider').fill('0')
    root.get_by_role('button', name='Play').click()  # at once at the end: motion is unwanted
    page.wait_for_function(
        "document.querySelector('[data-scene=film] .t-words').textContent.includes('300')"
    )


@pytest.mark.parametrize(
    'name, toy, at, says',
    [
        ('norm_collapse', 'film', '16', 'Step 130: rate 0.5'),
        ('batch_size', 'pair', '2', 'so it becomes 1.'),
    ],
)
def test_experiments_open_with_toys_of_the_tour(chromium, serve, tmp_path, name, toy, at, says):
    cells = json.loads((pages.NBS / f'check/{name}.ipynb').read_text(encoding='utf-8'))['cells']
    source = [line for cell in cells for line in cell['source']]
    tags = '\n'.join(line for line in source if re.match('<(link|div|script)', line))
    html = pages.HEAD.format(name=name, body=tags)
    # at the top of the site, so that '../learn' is 'learn'
    (tmp_path / f'{name}.html').write_text(html, encoding='utf-8')
    shutil.copytree(pages.LEARN, tmp_path / 'learn', ignore=shutil.ignore_patterns('*.ipynb'))
    shutil.copy(pages.NBS / 'styles.css', tmp_path)
    with pages.opened(chromium, f'{serve(tmp_path)}/{name}.html') as page:
        scene(page, toy).get_by_role('slider').first.fill(at)
        assert says in words(page, toy)


def test_averages_and_tiny_batches(page):
    root = scene(page, 'average')
    root.get_by_role('radio', name='3').check(force=True)
    for row, kind in zip(root.locator('tbody tr').all(), (None, 'bn', 'in'), strict=True):
        y = outputs(kind) if kind else four_images()
        cells = row.locator('td').all_inner_texts()
        assert cells == [shown(v) for v in y[2].mean((1, 2))]
    text = page.locator('main').inner_text()
    for power in (1, 2, 4, 6):
        scene(page, 'tiny').get_by_role('slider').fill(str(power))
        low, high = re.search(r'from (\S+) to (\S+), ', words(page, 'tiny')).groups()
        if power == 1:
            assert (low, high) == ('−1', '1')
        else:  # the numbers that the text gives
            assert re.search(f'{low}0? to {high}0?', text)


# ---- Choosing


def test_the_questions_lead_to_a_norm(page, which):
    for shown in (page, which):
        tree = shown.locator('[data-which]')
        lit = tree.locator('.w-end strong')
        for question, norm in ((3, 'Batch norm'), (1, 'RMS norm')):
            tree.get_by_role('button', name=re.compile('^yes')).nth(question).press('Enter')
            assert lit.count() == 1 and norm in lit.inner_text()
        tree.get_by_role('button', name=re.compile('^no:')).nth(3).press('Enter')
        assert lit.inner_text() == 'Group norm'
        assert 'Group norm' in tree.locator('.n-said').text_content()


def test_every_line_of_the_tree_is_torch(which):
    lines = which.locator('.w-leaf code').all_inner_texts()
    names = {'nn': torch.nn, 'dim': 8, 'channels': 16, 'bn_layer': torch.nn.BatchNorm2d(4)}
    for line in lines:
        eval(line, names)
    assert len(lines) == 5


def test_it_prints_on_one_sheet(which):
    sheet = which.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb'/Type\s*/Page\b', sheet)) == 1


# ---- Other hands, other eyes


def test_keyboard(page):
    bright = scene(page, 'bright')
    bright.get_by_role('radio', name='dark').focus()
    page.keyboard.press('Space')
    assert 'It is: that depends.' in bright.locator('.n-reply').inner_text()
    page.keyboard.press('Tab')  # on to the grid
    page.keyboard.press('ArrowRight')
    assert page.evaluate('document.activeElement.dataset.i') == '1'
    assert 'image 1, channel 1, top right, 4' in bright.locator('.n-said').text_content()
    scene(page, 'slide').get_by_role('button', name='Subtract').press('Enter')
    page.keyboard.press('Enter')  # the next button has the focus
    page.keyboard.press('ArrowRight')  # and then the slider of gamma
    assert 'Gamma is 1.25' in words(page, 'slide')
    for name in ('brightness', 'pair', 'scale', 'film', 'tiny'):
        slider = scene(page, name).get_by_role('slider').first
        texts = []
        for key in ('Home', 'End'):
            slider.press(key)
            texts.append(scene(page, name).inner_text())
        assert texts[0] != texts[1], name
    for name in ('back', 'average'):
        choice = scene(page, name).locator('.n-choices').nth(1).get_by_role('radio').first
        before = scene(page, name).inner_text()
        choice.press('ArrowRight')
        assert scene(page, name).inner_text() != before, name
    for button in ('New layer', 'one step'):
        scene(page, 'running').get_by_role('button', name=button).press('Enter')
    assert 'running mean: 0.8' in scene(page, 'running').inner_text()


def test_touch(tour):
    with tour(**PHONE) as page:
        bright = scene(page, 'bright')
        bright.locator(".n-grid:not(.n-small) [data-i='20']").tap()
        assert '7 becomes −0.33' in bright.locator('[data-kind=ln] p').inner_text()
        bright.locator('label', has_text='depends').tap()
        assert bright.locator('.n-reply').inner_text().startswith('Yes')
        for name, button in (('slide', 'Subtract'), ('running', 'ten steps'), ('tiny', 'other')):
            before = scene(page, name).inner_text()
            scene(page, name).get_by_role('button', name=button).tap()
            assert scene(page, name).inner_text() != before
        for name in ('brightness', 'pair', 'scale', 'film'):
            slider = scene(page, name).get_by_role('slider').first
            slider.scroll_into_view_if_needed()
            box, before = slider.bounding_box(), scene(page, name).inner_text()
            page.touchscreen.tap(box['x'] + box['width'] / 2, box['y'] + box['height'] / 2)
            assert scene(page, name).inner_text() != before, name
        for name in ('back', 'average'):
            before = scene(page, name).inner_text()
            scene(page, name).locator('.n-choices').nth(1).locator('label').last.tap()
            assert scene(page, name).inner_text() != before


def test_every_text_can_be_read_and_has_room(page, which):
    for shown in (page, which):
        shown.set_viewport_size({'width': 360, 'height': 740})
        for root in shown.locator('.n-predict').all():
            root.locator('label').first.click()
        for theme in pages.each_theme(shown):
            assert shown.evaluate(pages.FAINT, '.n-toy') == [], theme
        for width in (360, 820, 1920):
            shown.set_viewport_size({'width': width, 'height': 740})
            assert shown.evaluate('document.documentElement.scrollWidth') <= width


def test_a_screen_reader_finds_names_and_motion_ends(tour):
    with tour(reduced_motion='no-preference') as page:
        nameless = page.locator('input, select, button, svg').evaluate_all(
            "all => all.filter(e => !(e.labels?.length || e.getAttribute('aria-label') || "
            "e.textContent.trim() || e.closest('label'))).map(e => e.outerHTML)"
        )
        assert nameless == []
        for name in ('rate', 'bright', 'slide', 'pair', 'back', 'scale', 'film', 'tiny'):
            assert scene(page, name).locator('[aria-live=polite]').count() >= 1, name
        root = scene(page, 'slide')
        root.get_by_role('button', name='Subtract').click()
        page.wait_for_function(  # the picture arrives where the words are already
            "document.querySelector('[data-scene=slide] svg').ariaLabel.includes('mean 0')"
        )


@pytest.fixture(scope='module')
def front(chromium, serve, tmp_path_factory):
    "front(**options) opens the front page, which borrows a scene of the tour."
    folder = tmp_path_factory.mktemp('front')
    pages.build_front(folder)
    address = f'{serve(folder)}/index.html'
    return lambda **options: pages.opened(chromium, address, **options)


@pytest.mark.parametrize('options', [{}, PHONE], ids=['desktop', 'phone'])
def test_the_front_page_borrows_the_grids(front, options):
    with front(**options) as page:
        root = scene(page, 'bright')
        root.locator(".n-grid:not(.n-small) [data-i='20']").click()
        assert '7 becomes −0.33' in root.locator('[data-kind=ln] p').inner_text()
        assert root.locator('img').count() == 0  # the picture made room
        assert root.bounding_box()['y'] < 500
        assert page.evaluate('document.documentElement.scrollWidth') <= page.viewport_size['width']
        for theme in pages.each_theme(page):
            assert page.evaluate(pages.FAINT, '.n-toy') == [], theme
        loaded = page.evaluate("performance.getEntriesByType('resource').map(r => r.name)")
        scripts = {name.rsplit('/', 1)[1] for name in loaded if name.endswith('.js')}
        assert scripts == {'tour.js', 'sets.js', 'draw.js', 'film.js'}


def test_the_front_page_keeps_its_picture_without_javascript(front):
    with front(java_script_enabled=False) as page:
        picture = scene(page, 'bright').get_by_role('img')
        assert 'Batch norm: four colours' in picture.get_attribute('alt')
        assert picture.bounding_box()['height'] > 100


def test_without_javascript_the_page_says_so(tour):
    with tour(java_script_enabled=False) as page:
        assert 'need JavaScript' in page.locator('#two-networks').inner_text()
