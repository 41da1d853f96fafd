"""The site: nothing leaks and nothing is broken, in the notebooks as nbdev stages them and in the rendered pages."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

HEAVIEST = 1.5e6  # bytes of a page with its pictures
STAGE = """
from nbdev.serve import proc_nbs

if __name__ == "__main__":  # its workers are spawned
    proc_nbs(n_workers=2)
"""


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "A copy of the project, installed as far as nbdev needs it to find links."
    root = Path(__file__).resolve().parent.parent
    copy = tmp_path_factory.mktemp('site') / 'project'
    ignore = shutil.ignore_patterns(
        '.git', '.venv', '_proc', '_docs', 'runs', 'data', '*_cache', '__pycache__'
    )
    shutil.copytree(root, copy, ignore=ignore)
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'egg_info'], cwd=copy, check=True, capture_output=True
    )
    return copy


@pytest.fixture(scope='module')
def staged(project):
    "The notebooks as nbdev hands them to Quarto."
    (project / 'stage_site.py').write_text(STAGE, encoding='utf-8')
    command, env = [sys.executable, 'stage_site.py'], {**os.environ, 'PYTHONPATH': str(project)}
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert 'Found cells containing imports and other code' not in done.stderr, done.stderr
    return project / '_proc'


@pytest.fixture(scope='module')
def rendered(project):
    "The site: `_docs`, if it is newer than the notebooks; otherwise what Quarto makes now."
    root = Path(__file__).resolve().parent.parent
    sources = [p for p in (root / 'nbs').rglob('*') if p.is_file()]
    sources += [root / '_quarto.yml', root / '.ci/after_render.py']
    made = root / '_docs/sitemap.xml'
    if made.exists() and made.stat().st_mtime > max(p.stat().st_mtime for p in sources):
        return root / '_docs'
    if not shutil.which('quarto'):
        pytest.skip(
            f'the site is not rendered: there is no Quarto, and {"an old" if made.exists() else "no"} _docs'
        )
    command = [
        sys.executable,
        '-c',
        'from nbdev.quarto import nbdev_docs; nbdev_docs.__wrapped__(n_workers=0)',
    ]
    env = {**os.environ, 'PYTHONPATH': str(project)}
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return project / '_docs'


def site_address(root: Path) -> str:
    text = (root / 'settings.ini').read_text(encoding='utf-8')
    return ''.join(
        re.search(rf'^{key} = (.*)$', text, flags=re.M)[1] for key in ('doc_host', 'doc_baseurl')
    )


def page_of(notebook: str) -> str:
    "The page that nbdev and Quarto make of a notebook."
    return re.sub(r'(^|/)\d+_', r'\1', notebook).replace('.ipynb', '.html')


# The notebooks as staged


def notebooks(staged: Path) -> list[tuple[str, list[dict]]]:
    paths = sorted(staged.rglob('*.ipynb'))
    return [
        (p.relative_to(staged).as_posix(), json.loads(p.read_text(encoding='utf-8'))['cells'])
        for p in paths
    ]


def outputs(cell: dict) -> str:
    "All text that a cell's saved outputs hold."
    parts = []
    for output in cell.get('outputs', []):
        parts += [''.join(output.get('text', [])), '\n'.join(output.get('traceback', []))]
        parts += [''.join(v) for k, v in output.get('data', {}).items() if k.startswith('text/')]
    return '\n'.join(parts)


def prose(cell: dict) -> str:
    "What a cell says in Markdown, code blocks left out."
    if cell['cell_type'] == 'markdown':
        text = ''.join(cell['source'])
    else:
        shown = [o.get('data', {}).get('text/markdown', []) for o in cell.get('outputs', [])]
        text = '\n'.join(''.join(part) for part in shown)
    return re.sub(r'^```.*?^```', '', text, flags=re.M | re.S)


def anchors(cells: list[dict]) -> set[str]:
    "The anchors that Pandoc gives to the headings of a page."
    found, times = set(), Counter()
    for cell in cells:
        for heading in re.findall(r'^#+ +(.*?)\s*$', prose(cell), flags=re.M):
            heading = (
                re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading)
                .replace('`', '')
                .replace('*', '')
                .lower()
            )
            anchor = re.sub(r'^[^a-z]+', '', re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', heading)))
            found.add(f'{anchor}-{times[anchor]}' if times[anchor] else anchor)
            times[anchor] += 1
        found.update(re.findall(r'\bid=\"([^\"]+)\"', prose(cell)))
    return found


def test_every_notebook_is_staged(staged, root):
    names = {p.relative_to(root / 'nbs').as_posix() for p in (root / 'nbs').rglob('*.ipynb')}
    assert {name for name, _ in notebooks(staged)} == names
    assert (
        (staged / '_quarto.yml').exists()
        and (staged / 'nbdev.yml').exists()
        and (staged / 'styles.css').exists()
    )


def test_no_directive_of_nbdev_leaks(staged):
    leak = re.compile(r'^#\| *(export|exports|exporti|hide|default_exp|eval)\b(?!:)', flags=re.M)
    leaks = [
        (n, ''.join(c['source']))
        for n, cells in notebooks(staged)
        for c in cells
        if c['cell_type'] == 'code'
    ]
    assert [(n, s) for n, s in leaks if leak.search(s)] == []


def test_saved_outputs_hold_no_error_warning_or_path_of_a_machine(staged):
    bad = re.compile(
        r'Traceback \(most recent|Warning:|/(home|root|work|tmp|Users)/[\w.-]+|site-packages'
    )
    found = []
    for name, cells in notebooks(staged):
        for cell in cells:
            if any(
                o['output_type'] == 'error' or o.get('name') == 'stderr'
                for o in cell.get('outputs', [])
            ):
                found.append((name, 'error or stderr', ''.join(cell['source'])[:80]))
            if match := bad.search(outputs(cell)):
                found.append((name, match[0], ''.join(cell['source'])[:80]))
    assert found == []


def test_every_figure_has_alternative_text(staged):
    bare = [
        (name, ''.join(cell['source'])[:80])
        for name, cells in notebooks(staged)
        for cell in cells
        for output in cell.get('outputs', [])
        if any(kind.startswith('image/') for kind in output.get('data', {}))
        and not re.search(r'^#\| *fig-alt: *\S', ''.join(cell['source']), flags=re.M)
    ]
    assert bare == []


def test_links_and_pictures_lead_somewhere(staged, root):
    "Between notebooks, to the pages that nbdev links names to, and to their headings."
    address, pages = site_address(root), dict(notebooks(staged))
    by_page = {page_of(name): name for name in pages}
    headings = {name: anchors(cells) for name, cells in pages.items()}
    broken = []
    for name, cells in pages.items():
        for text in map(prose, cells):
            for target in re.findall(r'\]\(([^)\s]+)|(?:src|href)=\"([^\"]+)\"', text):
                target = target[0] or target[1]
                if target.startswith(address):  # made by nbdev from a name in backticks
                    target = os.path.relpath(target.removeprefix(address + '/'), Path(name).parent)
                if re.match(r'[a-z]+:', target):
                    continue
                path, _, anchor = target.partition('#')
                there = (
                    os.path.normpath(Path(name).parent / path).replace('\\', '/') if path else name
                )
                there = by_page.get(there, there)
                if not (staged / there).exists():
                    broken.append((name, target))
                elif anchor and there in pages and anchor not in headings[there]:
                    reference = 'reference/' + re.sub(
                        r'^\d+_', '', there
                    )  # .ci/after_render.py links names there
                    if anchor not in headings.get(reference, ()):
                        broken.append((name, target))
    assert broken == []


def test_the_sidebar_lists_every_page(staged, root):
    import yaml

    def pages(items):
        for item in items:
            if isinstance(item, str):
                yield item
            else:
                yield from pages(item.get('contents', []))
                if 'href' in item:
                    yield item['href']

    site = yaml.safe_load((root / '_quarto.yml').read_text(encoding='utf-8'))
    listed = list(pages(site['website']['sidebar']['contents']))
    assert sorted(listed) == sorted(name for name, _ in notebooks(staged))


def test_every_entry_of_the_reference_links_to_its_line(staged, root):
    entries = 0
    for name, cells in notebooks(staged):
        for cell in cells if name.startswith('reference/') else []:
            entry = re.search(
                r'^show_doc\(\w+\.([\w.]+),|^## (\w+)$', ''.join(cell['source']), flags=re.M
            )
            if entry:
                symbol = (entry[1] or entry[2]).split('.')[-1]
                [(path, line)] = re.findall(
                    r'\[source\]\(https://[^)]*?/blob/[^/]+/([^)#]+)#L(\d+)\)', prose(cell)
                )
                text = (root / path).read_text(encoding='utf-8').split('\n')[int(line) - 1]
                assert re.match(rf'\s*(def |class )?{symbol}\b', text), (name, symbol, text)
                entries += 1
    assert entries > 150


def test_every_page_has_a_description_of_its_own(root):
    cells = [
        json.loads(path.read_text(encoding='utf-8'))['cells']
        for path in (root / 'nbs').rglob('*.ipynb')
    ]
    found = [
        re.search(r'^> +(\S.*)$', ''.join(title['source']), flags=re.M)[1] for title, *_ in cells
    ]
    assert sorted(set(found)) == sorted(found)


def test_the_page_of_settings_shows_the_studies_as_they_are(root, monkeypatch):
    "Its saved output is what its cells say today."
    monkeypatch.chdir(root / 'nbs')  # beside the stored results
    cells = json.loads((root / 'nbs/check/settings.ipynb').read_text(encoding='utf-8'))['cells']
    shown, names = [], {}
    for cell in cells:
        if cell['cell_type'] == 'code':
            exec(''.join(cell['source']), names)
            names['display'] = lambda markdown: shown.append(markdown.data)
    saved = [
        o['data']['text/markdown']
        for c in cells
        for o in c.get('outputs', [])
        if 'text/markdown' in o['data']
    ]
    assert [''.join(text) for text in saved] == shown


# The rendered pages


class Page(HTMLParser):
    "What the checks want to know of a page."

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.sources, self.bare, self.code, self.classes = (
            set(),
            [],
            [],
            [],
            '',
            set(),
        )
        self.tags = []
        self.text = path.read_text(encoding='utf-8')
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.ids.update(known[key] for key in ('id', 'name') if known.get(key))
        self.classes.update((known.get('class') or '').split())
        if tag in ('a', 'link') and known.get('href'):
            self.links.append(known['href'])
        if known.get('src'):
            self.sources.append(known['src'])
        if tag == 'img' and not (known.get('alt') or '').strip():
            self.bare.append((known.get('src') or '')[:60])
        if tag == 'pre':
            self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag == 'pre' and self.tags:
            self.tags.pop()
            self.code += '\n'

    def handle_data(self, text):
        if self.tags:
            self.code += text


def faults(docs: Path, address: str, notebooks: Path) -> list[str]:
    "Everything that is wrong with a rendered site, a line each."
    pages = {path.relative_to(docs).as_posix(): Page(path) for path in sorted(docs.rglob('*.html'))}
    found = []
    for name, page in pages.items():
        weight = len(page.text.encode())
        for target in [*page.links, *page.sources]:
            if target.startswith(address):
                target = '/' + target.removeprefix(address).lstrip('/')
            elif edit := re.match(
                r'https://[^/]+/[^/]+/[^/]+/(?:edit|blob)/[^/]+/nbs/([^#]+)$', target
            ):
                if not (notebooks / unquote(edit[1])).exists():
                    found.append(f'{name}: {target} leads to no notebook')
                continue
            elif target.endswith('#LNone'):
                found.append(f'{name}: {target} leads to no line')
            parts = urlsplit(target)
            if parts.scheme or target.startswith('//'):
                continue
            there = unquote(urlsplit(urljoin(f'/{name}', target)).path).lstrip('/') or 'index.html'
            if not (docs / there).is_file():
                found.append(f'{name}: {target} leads nowhere')
            elif (
                parts.fragment
                and there in pages
                and unquote(parts.fragment) not in pages[there].ids | {'top'}
            ):
                found.append(f'{name}: {target} leads to no anchor')
            if (
                target in page.sources
                and not there.startswith('site_libs/')
                and (docs / there).is_file()
            ):
                weight += (docs / there).stat().st_size
        if weight > HEAVIEST:
            found.append(f'{name}: {weight / 1e6:.2f} MB')
        found += [f'{name}: no alternative text on {source}' for source in page.bare]
        for what, pattern in (
            ('a directive', r'^#\|[^\n]{,60}'),
            ('a traceback', r'Traceback \(most recent'),
            (
                'a warning',
                r'(?:User|Future|Deprecation|Runtime|Syntax|Resource)?Warning: [^\n]{,60}',
            ),
            ('a link in code', r'\]\(https?://[^\n]{,60}'),
            ('a path of a machine', r'/(?:home|root|work|tmp|Users)/[\w.-]+|site-packages'),
        ):
            if match := re.search(pattern, page.code, flags=re.M):
                found.append(f'{name}: {what}: {match[0]}')
        if 'cell-output-stderr' in page.classes:
            found.append(f'{name}: an output on stderr')
    return found


def test_the_rendered_site_is_whole(rendered, root):
    "A page for each notebook, and no other."
    names = {path.relative_to(root / 'nbs').as_posix() for path in (root / 'nbs').rglob('*.ipynb')}
    assert {path.relative_to(rendered).as_posix() for path in rendered.rglob('*.html')} == set(
        map(page_of, names)
    )
    assert faults(rendered, site_address(root), root / 'nbs') == []


def test_every_entry_of_the_rendered_reference_links_to_its_source(rendered, root):
    for path in (root / 'nbs/reference').glob('*.ipynb'):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        entries = [cell for cell in cells if re.match(r'show_doc\(|---\n', ''.join(cell['source']))]
        text = (rendered / f'reference/{path.stem}.html').read_text(encoding='utf-8')
        # none at all: the site was rendered where normnotes is not installed
        assert text.count('>source</a>') == len(entries), path.name


def test_no_page_offers_to_edit_what_is_made(rendered):
    for path in rendered.rglob('*.html'):
        made = path.parent.name == 'reference'
        assert ('Edit this page' in path.read_text(encoding='utf-8')) != made, path


def test_no_page_is_taken_for_one_of_another_part(rendered):
    bar = r'<a class="nav-link[^>]*href="[^>]*>'
    for path in rendered.rglob('*.html'):
        links = re.findall(bar, path.read_text(encoding='utf-8'))
        assert len(links) == 4 and not any(
            'active' in link or 'aria-current' in link for link in links
        ), path


def test_the_mending_of_the_bar(tmp_path, root, run_python):
    page = '<a class="nav-link{}" href="./sets.html"{}>Learn</a><a href="#x" class="nav-link active">X</a>'
    (tmp_path / 'one.html').write_text(
        page.format(' active', ' aria-current="page"'), encoding='utf-8'
    )
    done = run_python(
        root / '.ci/after_render.py', env={**os.environ, 'QUARTO_PROJECT_OUTPUT_DIR': str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'one.html').read_text(encoding='utf-8') == page.format('', '')


def test_what_a_link_preview_needs_is_there(rendered, root):
    address = site_address(root)
    for path in rendered.rglob('*.html'):
        pictures = re.findall(
            r'="(?:og|twitter):image" content="([^"]*)"', path.read_text(encoding='utf-8')
        )
        assert len(pictures) == 2, path
        for picture in pictures:
            assert (
                picture.startswith(f'{address}/')
                and (rendered / picture[len(address) + 1 :]).is_file()
            ), path
    text = (rendered / 'index.html').read_text(encoding='utf-8')
    assert re.search(r'<meta property="og:image" content="https://[^"]*/images/card.png"', text)
    assert 'property="og:image:alt"' in text and (rendered / 'images/card.png').is_file()
    assert 'href="./images/favicon.svg"' in text


@pytest.mark.parametrize(
    ('old', 'new', 'fault'),
    [
        ('href="two.html"', 'href="three.html"', 'one.html: three.html leads nowhere'),
        (
            'href="two.html#here"',
            'href="two.html#there"',
            'one.html: two.html#there leads to no anchor',
        ),
        ('href="#top-of-one"', 'href="#top-of-two"', 'one.html: #top-of-two leads to no anchor'),
        (
            'https://site/book/two.html',
            'https://site/book/three.html',
            'one.html: /three.html leads nowhere',
        ),
        ('src="figure.png"', 'src="picture.png"', 'one.html: picture.png leads nowhere'),
        ('edit/main/nbs/one.ipynb', 'edit/main/nbs/gone.ipynb', 'leads to no notebook'),
        ('https://elsewhere/', 'https://elsewhere/one.py#LNone', 'one.py#LNone leads to no line'),
        ('alt="A line"', 'alt=""', 'one.html: no alternative text on figure.png'),
        ('x = 1', '#| hide\nx = 1', 'one.html: a directive: #| hide'),
        ('x = 1', 'Traceback (most recent call last)', 'one.html: a traceback'),
        ('x = 1', 'UserWarning: old', 'one.html: a warning'),
        ('x = 1', 'x = 1  # [`one`](https://site/book/one.html)', 'one.html: a link in code'),
        ('x = 1', '/home/me/data', 'one.html: a path of a machine: /home/me'),
        ('x = 1', 'x = 1\n' * 250_000, 'one.html: 1.50 MB'),
        ('class="cell-output"', 'class="cell-output-stderr"', 'one.html: an output on stderr'),
    ],
)
def test_the_check_finds_what_is_broken(tmp_path, old, new, fault):
    docs, sources = tmp_path / 'docs', tmp_path / 'nbs'
    docs.mkdir()
    sources.mkdir()
    (sources / 'one.ipynb').touch()
    (docs / 'figure.png').touch()
    (docs / 'two.html').write_text('<h1 id="here">Two</h1>', encoding='utf-8')
    page = (
        '<h1 id="top-of-one">One</h1><a href="#top-of-one">a</a><a href="two.html">b</a><a href="two.html#here">c</a>'
        '<a href="https://site/book/two.html">d</a><a href="https://host/me/book/edit/main/nbs/one.ipynb">e</a>'
        '<a href="https://elsewhere/">f</a><img src="figure.png" alt="A line"><div class="cell-output">'
        '<pre><code>x = 1</code></pre></div>'
    )
    (docs / 'one.html').write_text(page, encoding='utf-8')
    assert faults(docs, 'https://site/book', sources) == []
    assert old in page
    (docs / 'one.html').write_text(page.replace(old, new), encoding='utf-8')
    [found] = faults(docs, 'https://site/book', sources)
    assert fault in found


# In a browser


def plain_page(cells: list[dict]) -> str:
    "A staged notebook as a page, without Quarto: text as it is written, code, outputs and pictures."
    parts = [
        '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><link rel="stylesheet" href="styles.css">'
    ]
    for cell in cells:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':  # HTML in it is HTML on the page
            parts.append(
                f'<div>{source}</div>'
                if source.startswith('<')
                else f'<p>{html.escape(source)}</p>'
            )
        else:
            parts.append(
                f'<pre style="overflow-x: auto">{html.escape(source)}</pre>' if source else ''
            )
        alt = re.search(r'^#\| *fig-alt: *\"?(.*?)\"?$', source, flags=re.M)
        for output in cell.get('outputs', []):
            data = {
                kind: ''.join(part)
                for kind, part in output.get('data', {}).items()
                if isinstance(part, str | list)
            }
            if 'image/png' in data:
                picture = f'<img src="data:image/png;base64,{data["image/png"]}" alt="{html.escape(alt[1] if alt else "")}">'
                parts.append(f'<div class="cell-output-display">{picture}</div>')
            else:
                shown = data.get('text/html') or f'<pre>{html.escape(outputs(cell))}</pre>'
                parts.append(f'<div class="cell-output-display cell-output">{shown}</div>')
    return f'<main>{"".join(parts)}</main>'


LOOK = """() => ({
  over: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth && i.src.startsWith(location.origin)
                                        || i.src.startsWith('data:') && !i.naturalWidth).map(i => i.alt),
  dark: document.body.classList.contains('quarto-dark'),
})"""


def look(chromium, address: str, names: list[str], width: int, dark: bool = False) -> list[str]:
    "What goes wrong in a browser that reaches no other server, page by page."
    context, found = chromium.new_context(viewport={'width': width, 'height': 844}), []
    mine = re.escape(address)
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
        page.goto(f'{address}/{name}', wait_until='load')
        seen = page.evaluate(LOOK)
        if seen['over'] > 0:
            found.append(f'{name}: {seen["over"]} pixels wider than a screen of {width}')
        found += [f'{name}: broken picture: {alt}' for alt in seen['broken']]
        if dark and not seen['dark']:
            found.append(f'{name}: not dark')
    context.close()
    return found


@pytest.mark.parametrize('width', [390, 1280])
def test_staged_notebooks_in_a_browser(staged, chromium, serve, tmp_path, width):
    shutil.copytree(staged / 'images', tmp_path / 'images')
    shutil.copy(staged / 'styles.css', tmp_path)
    names = []
    for name, cells in notebooks(staged):
        if (
            '/' not in name and name != 'learn/explorer.ipynb'
        ):  # it has tests of its own, with its script
            names.append(name.replace('.ipynb', '.html'))
            (tmp_path / names[-1]).write_text(plain_page(cells), encoding='utf-8')
    assert look(chromium, serve(tmp_path), names, width) == []


@pytest.mark.parametrize('dark', [False, True], ids=['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280, 1920])
def test_rendered_pages_in_a_browser(rendered, chromium, serve, width, dark):
    names = sorted(path.relative_to(rendered).as_posix() for path in rendered.rglob('*.html'))
    assert look(chromium, serve(rendered), names, width, dark) == []


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
    found = '\n'.join(look(chromium, serve(tmp_path), ['page.html'], 390, dark=True))
    for word in ('pixels wider', 'broken picture: Gone', 'no such luck', 'not dark', '404'):
        assert word in found
