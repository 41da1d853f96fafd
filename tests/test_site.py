"""The site: nothing leaks or is broken, in the notebooks as nbdev stages them and as pages."""

import base64
import html
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from pages import FAINT

ROOT = Path(__file__).resolve().parent.parent
STAGE = """
from nbdev.serve import proc_nbs

if __name__ == "__main__":  # its workers are spawned
    proc_nbs(n_workers=2)
"""
RENDER = 'from nbdev.quarto import nbdev_docs; nbdev_docs.__wrapped__(n_workers=0)'
PRIVATE = r'/(?:home|root|work|tmp|Users)/[\w.-]+|site-packages'  # a path of a machine


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the project, installed as far as nbdev needs it to find links."
    copy = tmp_path_factory.mktemp('site') / 'project'
    unwanted = ('.git', '.venv', '_proc', '_docs', 'runs', 'data', '*_cache', '__pycache__')
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*unwanted))
    run_in(copy, 'setup.py', '-q', 'egg_info')
    return copy


def run_in(project, *command):
    options = {'env': {**os.environ, 'PYTHONPATH': str(project)}, 'capture_output': True}
    done = subprocess.run([sys.executable, *command], cwd=project, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope='module')
def staged(project):
    "The notebooks as nbdev hands them to Quarto: name -> cells."
    (project / 'stage_site.py').write_text(STAGE, encoding='utf-8')
    assert 'Found cells containing imports and other code' not in run_in(project, 'stage_site.py')
    folder = project / '_proc'
    paths = sorted(folder.rglob('*.ipynb'))
    read = {p: json.loads(p.read_text(encoding='utf-8'))['cells'] for p in paths}
    return {path.relative_to(folder).as_posix(): cells for path, cells in read.items()}


@pytest.fixture(scope='module')
def rendered(project):
    "The site: `_docs`, if it is newer than the notebooks; otherwise what Quarto makes now."
    sources, made = [*(ROOT / 'nbs').rglob('*'), ROOT / '_quarto.yml'], ROOT / '_docs/sitemap.xml'
    if made.exists() and made.stat().st_mtime > max(p.stat().st_mtime for p in sources):
        return ROOT / '_docs'
    if not shutil.which('quarto'):
        pytest.skip('the site is not rendered: there is no Quarto and no fresh _docs')
    run_in(project, '-c', RENDER)
    return project / '_docs'


def site_address() -> str:
    text = (ROOT / 'settings.ini').read_text(encoding='utf-8')
    return ''.join(re.findall(r'^doc_(?:host|baseurl) = (.*)$', text, flags=re.M))


def source(cell: dict) -> str:
    return ''.join(cell['source'])


def outputs(cell: dict) -> str:
    "All text that a cell's saved outputs hold."
    parts = []
    for output in cell.get('outputs', []):
        parts += [''.join(output.get('text', [])), '\n'.join(output.get('traceback', []))]
        parts += [''.join(v) for k, v in output.get('data', {}).items() if k.startswith('text/')]
    return '\n'.join(parts)


def prose(cell: dict) -> str:
    "What a cell says in Markdown, code blocks left out."
    shown = [o.get('data', {}).get('text/markdown', []) for o in cell.get('outputs', [])]
    text = '\n'.join(map(''.join, shown)) if cell['cell_type'] == 'code' else source(cell)
    return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def anchors(cells: list[dict]) -> set[str]:
    "The anchors that Pandoc gives to the headings of a page."
    found, times = set(), Counter()
    for text in map(prose, cells):
        for heading in re.findall(r'^#+ +(.*?)\s*$', text, flags=re.M):
            if given := re.search(r'\{#([\w-]+)\}$', heading):
                found.add(given[1])
                continue
            heading = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading).lower()
            heading = re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', heading))
            anchor = re.sub(r'^[^a-z]+', '', heading)
            found.add(f'{anchor}-{times[anchor]}' if times[anchor] else anchor)
            times[anchor] += 1
        found.update(re.findall(r'\bid=\"([^\"]+)\"', text))
    return found


# The notebooks as staged


def test_the_sidebar_lists_every_notebook_once(staged):
    sidebar = (ROOT / '_quarto.yml').read_text(encoding='utf-8')
    listed = re.findall(r'- (\S+\.ipynb)$', sidebar, flags=re.M)
    assert sorted(listed) == sorted(staged)
    names = [p.relative_to(ROOT / 'nbs').as_posix() for p in (ROOT / 'nbs').rglob('*.ipynb')]
    assert sorted(staged) == sorted(names)


def code_cells(staged) -> list[tuple[str, dict]]:
    return [(n, c) for n, cells in staged.items() for c in cells if c['cell_type'] == 'code']


def test_no_directive_of_nbdev_leaks(staged):
    leak = re.compile(r'^#\| *(export|exports|exporti|hide|default_exp|eval)\b(?!:)', flags=re.M)
    assert [(n, source(c)) for n, c in code_cells(staged) if leak.search(source(c))] == []


def test_saved_outputs_hold_no_error_warning_or_path_of_a_machine(staged):
    bad, found = re.compile(rf'Traceback \(most recent|Warning:|{PRIVATE}'), []
    for name, cell in code_cells(staged):
        kinds = {o.get('name', o['output_type']) for o in cell['outputs']}
        if kinds & {'error', 'stderr'} or bad.search(outputs(cell)):
            found.append((name, source(cell)[:80]))
    assert found == []


def test_every_figure_has_alternative_text(staged):
    bare = []
    for name, cell in code_cells(staged):
        kinds = ' '.join(kind for o in cell['outputs'] for kind in o.get('data', {}))
        if 'image/' in kinds and not re.search(r'^#\| *fig-alt: *\S', source(cell), re.M):
            bare.append((name, source(cell)[:80]))
    assert bare == []


def test_links_and_pictures_lead_somewhere(staged, project):
    "Between notebooks, to the pages that nbdev links names to, and to their headings."
    address, headings = site_address(), {name: anchors(cells) for name, cells in staged.items()}
    broken = []
    for name, cells in staged.items():
        text = '\n'.join(map(prose, cells))
        targets = re.findall(r'\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)\"', text)
        for target in map(''.join, targets):
            folder, path = os.path.dirname(name), target
            if target.startswith(address):  # made by nbdev from a name in backticks
                folder, path = '', target.removeprefix(address + '/').replace('.html', '.ipynb')
            if re.match(r'[a-z]+:', path):
                continue
            path, _, anchor = path.partition('#')
            there = os.path.normpath(os.path.join(folder, path)) if path else name
            if not (project / '_proc' / there).exists():
                broken.append((name, target))
            elif '=' in anchor:  # what a toy is to show, not a heading
                continue
            elif anchor and anchor not in headings.get(there, {anchor}):
                broken.append((name, target))
    assert broken == []


def test_every_exported_name_has_its_card_in_the_section_reference(staged):
    "A card links to its line of the source. nbdev puts a missing card after its cell."
    astray = []
    for name, cells in staged.items():
        texts = [source(cell) for cell in cells]
        reference = [i for i, text in enumerate(texts) if re.search('^## Reference', text, re.M)]
        for i, cell in enumerate(cells):
            if shown := re.search(r'^show_doc\(([\w.]+)', source(cell), flags=re.M):
                symbol = shown[1].removesuffix('.func').split('.')[-1]  # of a cached property
                for path, line in re.findall(r'/blob/[^/]+/([^)#]+)#L(\w+)\)', prose(cell)):
                    text = (ROOT / path).read_text(encoding='utf-8').split('\n')[int(line) - 1]
                    if not re.search(rf'\b{symbol}\b|^ *@', text):
                        astray.append((name, shown[1], text))
                if i < max(reference, default=len(cells)):
                    astray.append((name, shown[1], 'not in the section Reference'))
    assert not astray, astray


def test_no_picture_or_badge_comes_from_another_server(staged):
    astray = []
    for name, cells in staged.items():
        for text in map(prose, cells):
            astray += [(name, src) for src in re.findall(r'<img[^>]* src="(\w+:[^"]+)"', text)]
    assert astray == []


def test_text_says_what_it_means(staged):
    "No star that Markdown takes for emphasis, and no heading that skips a level."
    found = []
    for name, cells in staged.items():
        if name.startswith('check/'):
            continue
        level = 1
        for text in (prose(cell) for cell in cells if cell['cell_type'] == 'markdown'):
            words = re.sub(r'\$\$.*?\$\$|`[^`]*`|^ {4}.*$|<[^>]*>', '', text, flags=re.S | re.M)
            found += [(name, product) for product in re.findall(r'\b[A-Z]\*[A-Z]\b', words)]
            for marks in re.findall(r'^(#+) ', text, flags=re.M):
                if len(marks) > level + 1:
                    found.append((name, f'a heading of level {len(marks)} after one of {level}'))
                level = len(marks)
    assert found == []


def test_every_figure_shows_on_light_and_dark_pages(staged):
    "A drawing without a background, and a second set of greys for dark pages."
    for name, cell in code_cells(staged):
        for output in cell['outputs']:
            if drawing := ''.join(output.get('data', {}).get('image/svg+xml', [])):
                assert 'prefers-color-scheme: dark' in drawing, name


def test_every_page_has_a_description_of_its_own():
    texts = [path.read_text(encoding='utf-8') for path in (ROOT / 'nbs').rglob('*.ipynb')]
    found = [re.search(r'> +(\S.*)$', source(json.loads(t)['cells'][0]), re.M)[1] for t in texts]
    assert len(set(found)) == len(found)


# The rendered pages


class Page:
    "What the checks want to know of a page."

    def __init__(self, path: Path):
        self.text = text = path.read_text(encoding='utf-8')
        self.ids = {'top', *re.findall(r'\s(?:id|name)="([^"]+)"', text)}
        self.links = re.findall(r'<(?:a|link)\b[^>]*?\shref="([^"]+)"', text)
        self.sources = re.findall(r'<(?:img|script)\b[^>]*?\ssrc="([^"]+)"', text)
        self.bare = re.findall(r'<img\b(?![^>]*\salt="\s*[^"\s])[^>]*>', text)
        code = '\n'.join(re.findall(r'<pre\b.*?</pre>', text, flags=re.S))
        self.code = html.unescape(re.sub(r'<[^>]*>', '', code))
        main = re.findall(r'<main\b.*</main>', text, flags=re.S)
        words = re.sub(
            r'<(pre|code|script|style|math|svg)\b.*?</\1>', '¦', ''.join(main), flags=re.S
        )
        self.words = html.unescape(re.sub(r'<[^>]*>', '¦', words))


def faults(docs: Path, address: str) -> list[str]:
    "Everything that is wrong with a rendered site, a line each."
    pages = {path.relative_to(docs).as_posix(): Page(path) for path in sorted(docs.rglob('*.html'))}
    found = []
    for name, page in pages.items():
        weight = len(page.text.encode())
        for target in [*page.links, *page.sources]:
            target = re.sub(f'^{re.escape(address)}/?', '/', target)
            parts = urlsplit(target)
            if parts.scheme or target.startswith('//'):
                continue
            path, anchor = urlsplit(urljoin(f'/{name}', target)).path, unquote(parts.fragment)
            there = unquote(path).lstrip('/') or 'index.html'
            if not (docs / there).is_file():
                found.append(f'{name}: {target} leads nowhere')
            elif anchor and '=' not in anchor and there in pages and anchor not in pages[there].ids:
                found.append(f'{name}: {target} leads to no anchor')
            elif target in page.sources and not there.startswith('site_libs/'):
                weight += (docs / there).stat().st_size
        if weight > 1.5e6:  # bytes, with pictures
            found.append(f'{name}: {weight / 1e6:.2f} MB')
        found += [f'{name}: no alternative text: {tag[:80]}' for tag in page.bare]
        leaks = rf'^#\|.*|Traceback \(most recent|\w*Warning: .*|\]\(https?://.*|{PRIVATE}|#LNone'
        found += [f'{name}: {leak}' for leak in re.findall(leaks, page.code, flags=re.M)]
    return found


def test_the_rendered_site_is_whole(rendered):
    names = {p.relative_to(ROOT / 'nbs').with_suffix('') for p in (ROOT / 'nbs').rglob('*.ipynb')}
    assert {p.relative_to(rendered).with_suffix('') for p in rendered.rglob('*.html')} == names
    assert faults(rendered, site_address()) == []


def test_every_rendered_page_has_a_bar_and_a_picture_for_previews(rendered):
    card = f'="og:image" content="{site_address()}/images/card.png"'
    for path in rendered.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        bar = re.findall(r'<a class="nav-link[^>]*href="[^>]*>', text)
        part = re.findall(
            r'nav-link active"[^>]*aria-current="true">\s*<span class="menu-text">(\w+)', text
        )
        crumbs = re.findall(r'<li class="breadcrumb-item"><a [^>]*>([^<]*)', text)
        assert len(bar) == 4 and part == [name for name in crumbs[:1] if name != 'normnotes'], path
        assert card in text and (rendered / 'images/card.png').is_file(), path
        assert ('Edit this page' in text) == (path.name != 'reference.html'), path


def test_rendered_text_is_typeset(rendered):
    "No Markdown, no hyphen for a minus, no x for a times, and one header row where one will do."
    markdown, minus = r'\]\(\w*[:/.]\S*|\*\*\w+', r'(?<![\w.)–−-])-\d\S*'
    times, large = r'\d(?<!\b0)x\d+', r'(?<![\w.,/#-])[1-9]\d{4,}(?![\w.,/-])'
    wrong = '|'.join((markdown, minus, times, large))
    found = []
    for path in sorted(rendered.rglob('*.html')):
        page = Page(path)
        found += [(path.name, bad) for bad in re.findall(wrong, page.words)]
        for head in re.findall(r'<thead>.*?</thead>', page.text, flags=re.S):
            rows = [
                re.findall(r'<th[^>]*>(.*?)</th>', row, re.S) for row in head.split('</tr>')[:-1]
            ]
            if len(rows) == 2 and len(rows[0]) == len(rows[1]):
                if not any(a and b for a, b in zip(*rows, strict=True)):
                    found.append((path.name, f'two header rows: {rows}'))
    assert found == []


def test_the_font_of_formulas_has_every_sign_of_theirs(rendered):
    from fontTools.ttLib import TTFont

    signs = set()
    for path in rendered.rglob('*.html'):
        for formula in re.findall(r'<math\b.*?</math>', path.read_text(encoding='utf-8'), re.S):
            formula = re.sub(r'<annotation.*?</annotation>|<[^>]*>', '', formula, flags=re.S)
            signs |= set(html.unescape(formula)) - set(' \n\u200b\u2061')
    font = TTFont(rendered / 'fonts/formulas.woff')
    assert signs and {ord(sign) for sign in signs} - set(font.getBestCmap()) == set()
    assert 'MATH' in font  # how to stretch roots and braces


def test_the_check_finds_what_is_broken(tmp_path):
    good = '<h1 id="one">One</h1><a href="#one">a</a><a href="https://site/one.html">b</a>'
    bad = (
        '<a href="#two">a</a><a href="two.html">b</a><a href="https://site/two.html">c</a>'
        '<img src="/one.html" alt=""><pre>#| hide\nUserWarning: old\n/home/me/data</pre>'
    )
    (tmp_path / 'one.html').write_text(good, encoding='utf-8')
    assert faults(tmp_path, 'https://site') == []
    (tmp_path / 'one.html').write_text(good + bad, encoding='utf-8')
    assert len(faults(tmp_path, 'https://site')) == 7


# In a browser


HEAD = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<link rel="stylesheet" href="/styles.css">"""


def plain_page(cells: list[dict]) -> str:
    "A staged notebook as a page, without Quarto: text, code, outputs and pictures."
    parts = [HEAD, '<main>']
    for cell in cells:
        text = source(cell)
        if text.startswith('<'):
            parts.append(f'<div>{text}</div>')  # HTML on the page
        elif cell['cell_type'] == 'markdown':
            parts.append(f'<p>{html.escape(text)}</p>')
        elif text:
            parts.append(f'<pre style="overflow-x: auto">{html.escape(text)}</pre>')
        alt = ''.join(re.findall(r'^#\| *fig-alt: *\"?(.*?)\"?$', text, flags=re.M)[:1])
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            if kinds := [kind for kind in data if kind.startswith('image/')]:
                image = ''.join(data[kinds[0]])
                if kinds[0] == 'image/svg+xml':
                    image = base64.b64encode(image.encode()).decode()
                address = f'data:{kinds[0]};base64,{image}'
                shown = f'<img src="{address}" alt="{html.escape(alt)}">'
            else:
                plain = f'<pre>{html.escape(outputs(cell))}</pre>'
                shown = ''.join(data.get('text/html', plain))
            parts.append(f'<div class="cell-output-display cell-output">{shown}</div>')
    return '\n'.join([*parts, '</main>'])


# Code that is cut at the edge of its box; a phone scrolls it
CUT = """() => [...document.querySelectorAll('main pre')].filter(e => e.checkVisibility()
  && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60))"""

THEMED = ':is(.quarto-light, .quarto-dark)'  # the body of a page with the book's colours

LOOK = """() => ({
  over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter(i => !i.naturalWidth && (i.src.startsWith('data:')
    || i.complete && i.src.startsWith(location.origin))).map(i => i.alt),
  dark: document.body.classList.contains('quarto-dark'),
})"""


# How much taller than the screen sidebar and contents are, and the letters in a line of text
FIT = """() => {
  const tall = id => (document.getElementById(id)?.scrollHeight ?? 0) - innerHeight, lines = [];
  for (const p of [...document.querySelectorAll('main > p, main section > p')].slice(0, 40)) {
    const range = document.createRange();
    range.selectNodeContents(p);
    const rows = new Set([...range.getClientRects()].map(r => Math.round(r.bottom / 12))).size;
    const plain = p.checkVisibility() && !p.querySelector('code, math');
    const letters = plain ? p.textContent.length : 0;
    if (letters > 250) lines.push(Math.round(letters / (rows - 0.5)));
  }
  const over = {sidebar: tall('quarto-sidebar'), contents: tall('quarto-margin-sidebar')};
  return [over, lines];
}"""


def look(
    chromium, address: str, names: list[str], widths: tuple[int, ...], dark: bool = False
) -> tuple[list[str], list[int]]:
    """What goes wrong in a browser that reaches no other server, page by page; the letters in each
    line of text. Each page is loaded once, in a window of 1280 by 800 pixels."""
    context = chromium.new_context(viewport={'width': 1280, 'height': 800})
    found, lengths, mine = [], [], re.escape(address)
    context.route(
        re.compile(rf'^(?!{mine}|data:)'), lambda route: route.fulfill(status=200, body='')
    )
    if dark:
        context.add_init_script("localStorage.setItem('quarto-color-scheme', 'alternate')")
    page = context.new_page()
    page.on(
        'console', lambda m: found.append(f'{page.url}: {m.text}') if m.type == 'error' else None
    )
    page.on('pageerror', lambda error: found.append(f'{page.url}: {error}'))
    for name in names:
        page.set_viewport_size({'width': 1280, 'height': 800})
        page.goto(f'{address}/{name}', wait_until='load')
        if 1280 in widths:
            tall, lines = page.evaluate(FIT)
            found += [f'{name}: {what} is {by} too tall' for what, by in tall.items() if by > 0]
            lengths += lines
            if faint := page.evaluate(FAINT, THEMED):
                found.append(f'{name}: hard to read: {faint[:3]}')
            if cut := page.evaluate(CUT):
                found.append(f'{name}: cut code: {cut}')
        for width in widths:
            page.set_viewport_size({'width': width, 'height': 800})
            page.evaluate('() => new Promise(requestAnimationFrame)')  # scripts see the new width
            seen = page.evaluate(LOOK)
            if seen['over'] > 0:
                found.append(f'{name}: {seen["over"]} pixels wider than a screen of {width}')
        found += [f'{name}: broken picture: {alt}' for alt in seen['broken']]
        if dark and not seen['dark']:
            found.append(f'{name}: not dark')
    context.close()
    return found, lengths


def test_staged_notebooks_in_a_browser(staged, project, chromium, serve, tmp_path):
    for folder in ('images', 'learn'):  # the front page shows a toy of the tour
        shutil.copytree(project / '_proc' / folder, tmp_path / folder)
    shutil.copy(project / '_proc/styles.css', tmp_path)
    names = []
    for name, cells in staged.items():
        if not name.startswith('learn/'):  # these pages have tests of their own, with their scripts
            names.append(name.replace('.ipynb', '.html'))
            (tmp_path / names[-1]).parent.mkdir(exist_ok=True)
            (tmp_path / names[-1]).write_text(plain_page(cells), encoding='utf-8')
    assert look(chromium, serve(tmp_path), names, (1280, 390))[0] == []


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
def test_rendered_pages_in_a_browser(rendered, chromium, serve, dark):
    "Sidebar and contents fit a screen, and text a line."
    names = sorted(path.relative_to(rendered).as_posix() for path in rendered.rglob('*.html'))
    found, lengths = look(chromium, serve(rendered), names, (1280, 390, 1920), dark)
    assert found == []
    assert 65 <= statistics.median(lengths) <= 75


@pytest.mark.parametrize('system', ['light', 'dark'])
def test_the_site_is_light_or_dark_as_the_readers_system_is(rendered, chromium, serve, system):
    page = chromium.new_page(color_scheme=system)
    page.goto(f'{serve(rendered)}/index.html', wait_until='load')
    assert page.evaluate(LOOK)['dark'] == (system == 'dark')
    page.close()


def test_the_look_finds_what_is_broken(chromium, serve, tmp_path):
    wide = '<div style="width: 2000px">wide</div><img src="gone.png" alt="Gone">'
    (tmp_path / 'page.html').write_text(
        wide + '<script>throw new Error("no such luck")</script>', encoding='utf-8'
    )
    found = '\n'.join(look(chromium, serve(tmp_path), ['page.html'], (390,), dark=True)[0])
    for word in ('pixels wider', 'broken picture: Gone', 'no such luck', 'not dark', '404'):
        assert word in found
