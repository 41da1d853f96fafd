"""A page of nbs/learn without Quarto: its notebook as plain HTML, with the real scripts."""

import html
import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / 'nbs'
LEARN = NBS / 'learn'
HEAD = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">
<title>{name}</title>
<link rel="icon" href="data:,"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="styles.css"><style>
body {{ margin: 0 auto; padding: 8px 12px; max-width: 1020px; font: 16px/1.5 sans-serif }}
body {{ background: #fff }}
body.quarto-dark {{ background: #222; color: #eee }} body.quarto-dark a {{ color: #6cb6ff }}
* {{ box-sizing: border-box }} pre {{ overflow-x: auto }}</style></head>
<body class="quarto-light"><main>{body}</main></body></html>"""


def inline(text):
    text = re.sub(r'`([^`]+)`', lambda m: f'<code>{m[1].replace("<", "&lt;")}</code>', text)
    text = re.sub(r'\[([^\]]+)\]\(([^)]+)\)', r'<a href="\2">\1</a>', text)
    text = re.sub(r'\*\*(.+?)\*\*', r'<strong>\1</strong>', text)
    return re.sub(r'(?<![\w*])\*([^*\n]+)\*(?!\w)', r'<em>\1</em>', text)


def block(text):
    if text.startswith('<'):
        return text
    if text.startswith('#'):
        marks, words = text.split(' ', 1)
        return f'<h{len(marks)}>{inline(words)}</h{len(marks)}>'
    if re.match(r'- |\d\. ', text):
        items = re.split(r'^(?:- |\d\. )', text, flags=re.M)[1:]
        return '<ul>' + ''.join(f'<li>{inline(item)}</li>' for item in items) + '</ul>'
    return f'<p>{inline(text.removeprefix("> "))}</p>'


def markdown(name):
    "The cells of a notebook of nbs/learn that readers see, as Markdown; code as HTML."
    cells = json.loads((LEARN / f'{name}.ipynb').read_text(encoding='utf-8'))['cells']
    texts = [(cell['cell_type'], ''.join(cell['source'])) for cell in cells]
    code = '<pre><code>{}</code></pre>'
    return [
        text if kind == 'markdown' else code.format(re.sub(r'\n\s*\n', '\n', html.escape(text)))
        for kind, text in texts
        if '#| hide' not in text
    ]


def build(name, folder):
    for path in (*LEARN.glob('*.js'), *LEARN.glob('*.css'), NBS / 'styles.css'):
        shutil.copy(path, folder)
    body = '\n'.join(
        block(part)
        for text in markdown(name)
        for part in re.split(r'\n\s*\n', text.strip())
        if not re.match(r'- [a-z-]+: ', part)  # settings of the page, which nbdev takes out
    )
    page = HEAD.format(name=name, body=body)
    (Path(folder) / f'{name}.html').write_text(page, encoding='utf-8')


def build_front(folder):
    "The front page, index.html: its text, the HTML among its outputs, and the folders beside it."
    shutil.copytree(NBS / 'images', folder / 'images')
    shutil.copytree(LEARN, folder / 'learn', ignore=shutil.ignore_patterns('*.ipynb'))
    shutil.copy(NBS / 'styles.css', folder)
    parts = []
    for cell in json.loads((NBS / 'index.ipynb').read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'markdown':
            parts += map(block, re.split(r'\n\s*\n', ''.join(cell['source'])))
        for output in cell.get('outputs', []):
            parts.append(''.join(output.get('data', {}).get('text/html', [])))
    page = HEAD.format(name='normnotes', body='\n'.join(parts))
    (folder / 'index.html').write_text(page, encoding='utf-8')


@contextmanager
def opened(chromium, address, view='', without='', **options):
    """The page in a window of its own. No error, warning, failure or outside request may follow.
    `without`: a script that is to stay away."""
    faults, home = [], address.rsplit('/', 1)[0]
    options = {'viewport': {'width': 1280, 'height': 800}, 'reduced_motion': 'reduce', **options}
    context = chromium.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on('console', lambda m: m.type in ('error', 'warning') and faults.append(m.text))
    page.on('pageerror', lambda error: faults.append(str(error)))
    page.on(
        'response',
        lambda answer: answer.status < 400 or faults.append(f'{answer.status}: {answer.url}'),
    )
    page.on(
        'request',
        lambda ask: ask.url.startswith((home, 'data:', 'blob:')) or faults.append(ask.url),
    )
    if without:
        page.route(f'**/{without}', lambda route: route.fulfill(content_type='text/javascript'))
    page.goto(f'{address}#{view}' if view else address)
    try:
        yield page
        assert not faults, faults
    finally:
        context.close()


def each_theme(page):
    for theme in ('quarto-dark', 'quarto-light'):
        page.evaluate('name => { document.body.className = name }', theme)
        yield theme


# Texts of a part of the page whose contrast with what is behind them is below 4.5 to 1
FAINT = """selector => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = new Map(), rgba = color => {
    if (known.has(color)) return known.get(color);
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = color;
    pen.fillRect(0, 0, 1, 1);
    known.set(color, [...pen.getImageData(0, 0, 1, 1).data]);
    return known.get(color);
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const faint = [];
  for (const element of document.querySelectorAll(selector + ' *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    if (element.closest('.n-said, option, :disabled')) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest('svg') ? style.fill : style.color);
    if (!ink[3]) continue;
    let back = [0, 0, 0, 0];
    for (let up = element; up && back[3] < 250; up = up.parentElement)
      back = rgba(getComputedStyle(up).backgroundColor);
    const [high, low] = [light(ink), light(back)].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) < 4.5)
      faint.push([element.textContent.trim().slice(0, 30), style.color, back]);
  }
  return faint;
}"""
