#!/usr/bin/env python3
"""Bring all that is made from the notebooks in step with them; exit with 1 if anything was not.

CONTRIBUTING.md lists what is made. Needs nbdev, but neither git nor Quarto.
"""

import ast
import os
import re
import sys
from pathlib import Path

from execnb.nbio import mk_cell, new_nb, read_nb, write_nb
from nbdev.clean import nbdev_clean
from nbdev.config import get_config
from nbdev.doclinks import nbdev_export
from nbdev.quarto import refresh_quarto_yml

ROOT = Path(__file__).resolve().parent.parent
NBS, PACKAGE = ROOT / 'nbs', ROOT / 'normnotes'
CFG = get_config(path=ROOT)  # settings.ini
OWNED = f'{CFG.user}/{CFG.repo}'
SITE = CFG.doc_host + CFG.doc_baseurl


def refresh_notebook(path: Path) -> None:
    "Write the addresses; drop the cards, which each build of the site makes again."
    notebook, name, repo = read_nb(path), path.relative_to(NBS).as_posix(), CFG.repo
    for cell in notebook.cells:
        text = re.sub(rf'(github(\.com)?)/[\w.-]+/{repo}\b', rf'\1/{OWNED}', cell.source)
        text = re.sub(rf'https://[\w.-]+\.github\.io/{repo}\b', SITE, text)
        if cell.id == 'colab':  # the badge
            text = re.sub(r'/blob/.*\.ipynb', f'/blob/{CFG.branch}/nbs/{name}', text)
            badge = os.path.relpath('images/colab.svg', os.path.dirname(name) or '.')
            text = re.sub(r'src="[^"]*"', f'src="{badge}"', text)
        if cell.id == 'colab-install':
            text = re.sub(r'-b \S+', f'-b {CFG.branch}', text)
            text = re.sub(rf'{repo}/nbs/.*', f'{repo}/nbs/{os.path.dirname(name)}', text)
        if text.startswith('show_doc('):
            cell.outputs = []
        cell.source = text
    write_nb(notebook, path)


def public_names(module: str) -> dict[str, str]:
    "The names that a module defines and exports, each with its one line."
    text, about = (PACKAGE / f'{module}.py').read_text(encoding='utf-8'), {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            about[node.name] = (ast.get_docstring(node) or '').split('\n')[0]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            name = ast.unparse(getattr(node, 'target', None) or node.targets[0])
            about[name] = text.split('\n')[node.lineno - 1].partition('  # ')[2]
            if name == '__all__':
                exported = ast.literal_eval(node.value)
    return {name: about[name].replace('|', r'\|') for name in exported if name in about}


def write_reference() -> None:
    "nbs/reference.ipynb: every public name, with a link to its card on its module's own page."
    sidebar = (ROOT / '_quarto.yml').read_text(encoding='utf-8')
    texts = ['# Every name\n\n> The names that the package exports\n\n- repo-actions: false']
    for page in re.findall(r'- (\S+/\S+\.ipynb)$', sidebar, flags=re.M):
        text = '\n'.join(cell.source for cell in read_nb(NBS / page).cells)
        if module := re.search(r'^#\| default_exp (\S+)$', text, flags=re.M):
            names = public_names(module[1].replace('.', '/'))
            about = re.search(r'^> (.*)$', text, flags=re.M)[1]
            rows = [f'## [normnotes.{module[1]}]({page})', '', about, '']
            rows += ['| name | what it is |', '|---|---|'] if names else []
            for name, about in names.items():
                anchor = name.lower() if f'show_doc({name})' in text else 'reference'
                rows.append(f'| [{name}]({page}#{anchor}) | {about} |')
            texts.append('\n'.join(rows))
    cells = [mk_cell(text, 'markdown', id=f'part{i}') for i, text in enumerate(texts)]
    write_nb(new_nb(cells, read_nb(NBS / 'index.ipynb').metadata), NBS / 'reference.ipynb')


def readme_part(cell: dict) -> str:
    "A cell of the front page as the Markdown that a code host shows."
    if cell.cell_type == 'markdown':
        text = re.sub(r'\]\((reference|learn/explorer)\.ipynb', rf']({SITE}/\1.html', cell.source)
        return re.sub(r'(\]\(|src="|href=")(?![a-z]+:|#)', r'\g<1>nbs/', text)
    if '#| hide' in cell.source:
        return ''
    code = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M)
    parts = [] if '#| echo: false' in cell.source else [f'```python\n{code}\n```']
    for output in cell.outputs:
        data = output.get('data', {})
        plain = ''.join(output.get('text') or data['text/plain']).rstrip()
        parts.append(''.join(data.get('text/markdown', f'```\n{plain}\n```')))
    return '\n\n'.join(parts)


def write_readme() -> None:
    "README.md from the front page, with badges."
    tests = f'https://github.com/{OWNED}/actions/workflows/test.yaml'
    python, blue = f'{CFG.min_python}%2B-0072B2', 'https://img.shields.io/badge'
    title, *parts = map(readme_part, read_nb(NBS / 'index.ipynb').cells)
    head = f"""<!-- Made from nbs/index.ipynb by .ci/in_step.py: edit the notebook. -->

{title}

[![Tests]({tests}/badge.svg?branch={CFG.branch})]({tests})
[![Read the book]({blue}/read-the_book-0072B2)]({SITE})
![Python {CFG.min_python} or newer]({blue}/python-{python})
[![Licence: Apache 2.0]({blue}/licence-Apache_2.0-0072B2)](LICENSE)"""
    readme = '\n\n'.join([head, *filter(None, parts)]) + '\n'
    (ROOT / 'README.md').write_text(readme, encoding='utf-8')


def made_files() -> dict[Path, str]:
    paths = [ROOT / 'README.md', *NBS.rglob('*.ipynb'), *NBS.glob('*.yml'), *PACKAGE.rglob('*.py')]
    return {path: path.read_text(encoding='utf-8') for path in paths}


def main() -> str:
    "The files that were not in step, a line each."
    os.chdir(ROOT)
    before = made_files()
    for path in NBS.rglob('*.ipynb'):
        refresh_notebook(path)
    nbdev_export.__wrapped__()
    write_reference()
    nbdev_clean.__wrapped__()
    refresh_quarto_yml()
    write_readme()
    changed = [path for path, text in made_files().items() if before.get(path) != text]
    return '\n'.join(f'{path.relative_to(ROOT).as_posix()} was not in step' for path in changed)


if __name__ == '__main__':
    sys.exit(main() or 0)
