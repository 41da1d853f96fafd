#!/usr/bin/env python3
"""Brings everything that is made from the notebooks in step with them; exits 1 if anything was not.

    python .ci/in_step.py

Exports the package and cleans the notebooks; from settings.ini it writes nbs/nbdev.yml and the cells of the notebooks
that hold an address, from the package nbs/reference/, and README.md from nbs/index.ipynb. Needs git and nbdev, but no
Quarto. A tree that was in step is left untouched.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README_NOTE = '<!-- Made from nbs/index.ipynb by .ci/in_step.py: edit the notebook. -->\n\n'


def settings() -> dict[str, str]:
    "settings.ini, where the owner and every other fact about the project stands."
    parser = configparser.ConfigParser(delimiters=['='], interpolation=None)
    parser.read(ROOT / 'settings.ini', encoding='utf-8')
    return dict(parser['DEFAULT'])


def repository() -> str:
    return f'https://github.com/{settings()["user"]}/{settings()["repo"]}'


def site() -> str:
    return settings()['doc_host'] + settings()['doc_baseurl']


def tree() -> str:
    "git's name for the content of the working tree: tracked and new files, the ignored ones left out."
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, 'GIT_INDEX_FILE': str(Path(folder) / 'index')}
        subprocess.run(
            ['git', 'add', '-A', '.'], cwd=ROOT, env=env, check=True, capture_output=True
        )
        done = subprocess.run(
            ['git', 'write-tree'], cwd=ROOT, env=env, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()


def write(path: Path, text: str) -> None:
    "Write a file if it is not so already."
    if not path.exists() or path.read_text(encoding='utf-8') != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding='utf-8')


def read_cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding='utf-8'))['cells']


def write_notebook(path: Path, notebook: dict) -> None:
    "A notebook as nbdev writes it."
    write(path, json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + '\n')


def write_cells(path: Path, cells: list[dict]) -> None:
    "A notebook of these cells."
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    metadata = {'kernelspec': kernel}
    write_notebook(path, {'cells': cells, 'metadata': metadata, 'nbformat': 4, 'nbformat_minor': 5})


def cell(name: str, kind: str, source: str) -> dict:
    code = {'execution_count': None, 'outputs': []} if kind == 'code' else {}
    return {
        'cell_type': kind,
        'id': name,
        'metadata': {},
        'source': source.splitlines(keepends=True),
        **code,
    }


# The cells that hold an address: of the repository, of the site, of Colab


def address_cells(name: str) -> list[dict]:
    "On the front page where the code is; elsewhere the Colab badge, and what Colab has to run before the rest."
    cfg = settings()
    if name == 'index.ipynb':
        clone = f'```\ngit clone {repository()} && cd {cfg["repo"]}\n```'
        use = f'In a project of your own, `pip install git+{repository()}` is enough.'
        return [cell('address', 'markdown', f'{clone}\n\n{use}')]
    colab = f'https://colab.research.google.com/github/{cfg["user"]}/{cfg["repo"]}/blob/{cfg["branch"]}/nbs/{name}'
    badge = (
        f'<a class="colab" href="{colab}">'
        '<img src="https://colab.research.google.com/assets/colab-badge.svg" alt="Open in Colab"></a>'
    )
    install = f"""#| hide
#| eval: false
# On Colab: fetch this book and install it, so that the cells below run from top to bottom.
if 'google.colab' in str(get_ipython()):
    %cd -q /content
    !test -d {cfg['repo']} || git clone -q --depth 1 -b {cfg['branch']} {repository()}
    %cd -q {cfg['repo']}/nbs
    %pip install -q '..[book]'"""
    if name == 'check/run_it_yourself.ipynb':  # it installs for itself, anywhere
        address = (
            f"ADDRESS = 'git+{repository()}'  # of the package, for pip; the book is at {site()}"
        )
        return [cell('colab', 'markdown', badge), cell('address', 'code', address)]
    return [cell('colab', 'markdown', badge), cell('colab-install', 'code', install)]


def write_address_cells() -> None:
    "Into the front page, and the notebooks that a reader may want to run: chapters, experiments and recipes."
    nbs = ROOT / 'nbs'
    for path in sorted(
        [*nbs.glob('[0-9]*.ipynb'), *nbs.glob('use/recipes.ipynb'), *nbs.glob('index.ipynb')]
    ):
        notebook = json.loads(path.read_text(encoding='utf-8'))
        cells = [
            c for c in notebook['cells'] if c.get('id') not in ('colab', 'colab-install', 'address')
        ]
        heads = [''.join(c['source'])[:8] for c in cells]
        place = heads.index('## Start') + 1 if path.stem == 'index' else 1  # after the title
        cells[place:place] = address_cells(path.name)
        write_notebook(path, {**notebook, 'cells': cells})


# The reference: a page for each module, and one with every name


class Name:
    "A public name of a module, as its source tells it."

    def __init__(self, name: str, node: ast.stmt, comment: str):
        self.name, self.node, self.comment = name, node, comment

    @property
    def about(self) -> str:
        "Its one line: of the docstring; for a constant the comment on its first line, its items, type or value."
        if isinstance(self.node, (ast.FunctionDef, ast.ClassDef)):
            return (ast.get_docstring(self.node) or '').split('\n')[0]
        value = self.node.value
        items = value.keys if isinstance(value, ast.Dict) else getattr(value, 'elts', [])
        if items and all(isinstance(item, ast.Constant) for item in items):
            return self.comment or ', '.join(f'`{item.value}`' for item in items[:6]) + ', …' * (
                len(items) > 6
            )
        said = ast.unparse(getattr(self.node, 'annotation', value))
        return self.comment or f'`{textwrap.shorten(said, 80, placeholder=" …")}`'

    @property
    def methods(self) -> list[str]:
        "Public methods and properties that have a docstring."
        body = self.node.body if isinstance(self.node, ast.ClassDef) else []
        return [
            f.name
            for f in body
            if isinstance(f, ast.FunctionDef) and f.name[0] != '_' and ast.get_docstring(f)
        ]


def public_names(path: Path) -> list[Name]:
    "What a module exports, in the order of its source."
    text = path.read_text(encoding='utf-8')
    lines, found, exported = text.split('\n'), [], []
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(Name(node.name, node, ''))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and target.id == '__all__':
                exported = ast.literal_eval(node.value)
            elif isinstance(target, ast.Name):
                comment = re.search(r'  # (.*)$', lines[node.lineno - 1])
                found.append(Name(target.id, node, comment[1] if comment else ''))
    return [name for name in found if name.name in exported]


def constant(name: Name, path: Path) -> str:
    "The entry of a constant, which `show_doc` cannot show: its source, or the head of it."
    lines = path.read_text(encoding='utf-8').split('\n')[
        name.node.lineno - 1 : name.node.end_lineno
    ]
    code = '\n'.join(lines if len(lines) <= 24 else [*lines[:16], '    ...'])
    where = f'{repository()}/blob/{settings()["branch"]}/{path.relative_to(ROOT).as_posix()}#L{name.node.lineno}'
    source = f'[source]({where}){{target="_blank" style="float:right; font-size:smaller"}}'
    return f'---\n\n{source}\n\n## {name.name}\n\n```python\n{code}\n```'


def imports(module: str, path: Path) -> list[dict]:
    "The hidden cells of a page of the reference: what `show_doc` needs to find types and the lines of the source."
    lines, names = ['from nbdev import doclinks', 'from nbdev.showdoc import show_doc'], []
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
            lines += [ast.unparse(line) for line in node.body]
            names += [alias.name for line in node.body for alias in line.names]
    lines, package = '\n'.join(sorted(lines)), path.parent.name
    known = [
        f'{module}.{name} = {name}' for name in names
    ]  # what the module imports for types alone
    # nbdev knows the lines of `f` and of `Class.f`, and asks for those of `package.module.f`
    lookup = f'doclinks._get_exps(file).get(name.removeprefix("{package}.{module}."))'
    known.append(f'doclinks._lineno = lambda name, file: {lookup}')
    return [
        cell('imports', 'code', f'#| hide\n{lines}\n\nfrom {package} import {module}'),
        cell('known', 'code', '\n'.join(['#| hide', '#| exec_doc', *known])),
    ]


def write_reference() -> None:
    "nbs/reference/ from the package."
    folder, package, index = ROOT / 'nbs/reference', ROOT / settings()['lib_path'], {}
    for chapter in sorted((ROOT / 'nbs').glob('[0-9]*.ipynb')):
        sources = [''.join(c['source']) for c in read_cells(chapter)]
        title = sources[0].split('\n')[0].lstrip('# ')
        module = next(
            (m[1] for m in (re.match(r'#\| default_exp (\w+)', s) for s in sources) if m), None
        )
        if not module:
            continue
        path, heading = package / f'{module}.py', f'{package.name}.{module}'
        # nothing here for nbdev_test: the page holds no cell but show_doc; and nothing to edit, for it is made here
        head = f'# {heading}\n\n> Every public name of {heading}\n\n- skip_exec: true\n- repo-actions: false'
        about = f'Explained, built and tested in [{title}](../{chapter.name}).'
        cells = [
            cell('title', 'markdown', head),
            cell('chapter', 'markdown', about),
            *imports(module, path),
        ]
        rows = [
            f'## [{heading}]({module}.ipynb)',
            '',
            '| name | what it is |',
            '|------|-----------------|',
        ]
        seen: list[str] = []
        for name in public_names(path):
            anchor, about = name.name.lower(), name.about.replace('|', '\\|')
            again = (
                f'-{seen.count(anchor)}' if anchor in seen else ''
            )  # as Pandoc tells `Augment` and `augment` apart
            seen.append(anchor)
            rows.append(f'| [{name.name}]({module}.ipynb#{anchor}{again}) | {about} |')
            if isinstance(name.node, (ast.FunctionDef, ast.ClassDef)):
                cells.append(
                    cell(name.name, 'code', f'show_doc({module}.{name.name}, title_level=2)')
                )
            else:
                cells.append(cell(name.name, 'markdown', constant(name, path)))
            for method in name.methods:
                call = f'show_doc({module}.{name.name}.{method}, title_level=3)'
                cells.append(cell(f'{name.name}-{method}', 'code', call))
        write_cells(folder / f'{module}.ipynb', cells)
        index[module] = '\n'.join(rows)
    head = '# Every name\n\n> What the package exports, module by module\n\n- repo-actions: false'
    about = 'Each links to its signature, with a comment on every parameter, and from there to its source.'
    cells = [cell('title', 'markdown', head), cell('about', 'markdown', about)]
    write_cells(
        folder / 'names.ipynb', cells + [cell(m, 'markdown', rows) for m, rows in index.items()]
    )
    for path in folder.glob('*.ipynb'):
        if path.stem not in [*index, 'names']:
            path.unlink()


# The README


def readme_badges() -> str:
    "The badges at the top of the README, from settings.ini."
    cfg, name = settings(), repository()
    tests, shields = f'{name}/actions/workflows/test.yaml', 'https://img.shields.io/badge'
    badges = [
        f'[![Tests]({tests}/badge.svg?branch={cfg["branch"]})]({tests})',
        f'[![Read the book]({shields}/read-the_book-0072B2)]({site()})',
        f'![Python {cfg["min_python"]} or newer]({shields}/python-{cfg["min_python"]}%2B-0072B2)',
        f'[![Licence: Apache 2.0]({shields}/licence-Apache_2.0-0072B2)](LICENSE)',
    ]
    return '\n'.join(badges)


def cell_markdown(cell: dict) -> str:
    "One cell of the front page as the Markdown that a code host shows."
    source = ''.join(cell['source'])
    if cell['cell_type'] == 'markdown':
        if ':::' in source or '{{<' in source:
            raise SystemExit(
                f"nbs/index.ipynb: a code host cannot show Quarto's own syntax:\n{source}"
            )
        # These pages are bare on a code host: only the site has what `show_doc` says, and the explorer's script.
        source = re.sub(r'\]\((reference/\w+|explorer)\.ipynb', rf']({site()}/\1.html', source)
        # Links and pictures are relative to nbs/ there, to the top folder here.
        return re.sub(r'(\]\(|src=\"|srcset=\"|href=\")(?![a-z]+:|#|/)', r'\g<1>nbs/', source)
    options = dict(re.findall(r'^#\| *([\w-]+):? *(.*)$', source, flags=re.M))
    if 'hide' in options:
        return ''
    code = re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()
    parts = [] if options.get('echo') == 'false' else [f'```python\n{code}\n```']
    for output in cell['outputs']:
        data = output.get('data', {})
        if any(kind.startswith('image/') for kind in data):
            raise SystemExit(
                'nbs/index.ipynb: a README cannot hold an output picture; link a file of nbs/images'
            )
        text = ''.join(output.get('text') or data.get('text/plain') or [])
        if 'text/markdown' in data:
            parts.append(''.join(data['text/markdown']).strip())
        elif text:
            parts.append(f'```\n{text.rstrip()}\n```')
    return '\n\n'.join(parts)


def write_readme() -> None:
    "README.md from nbs/index.ipynb."
    title, *cells = [cell_markdown(c) for c in read_cells(ROOT / 'nbs/index.ipynb')]
    path = ROOT / 'README.md'
    write(path, README_NOTE + '\n\n'.join([title, readme_badges(), *filter(None, cells)]) + '\n')
    path.touch()  # never older than the notebook: nbdev_docs then leaves it as it is


def main() -> int:
    os.chdir(ROOT)
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export
    from nbdev.quarto import refresh_quarto_yml

    before = tree()
    write_address_cells()
    nbdev_export.__wrapped__()
    write_reference()
    nbdev_clean.__wrapped__()
    refresh_quarto_yml()
    write_readme()
    after = tree()
    if before == after:
        print('in step: package, notebooks, reference, nbdev.yml and README')
        return 0
    changed = subprocess.run(
        ['git', 'diff', '--stat', before, after], check=True, capture_output=True, text=True
    )
    print(
        f'These were not in step, and now are; look at them and commit:\n{changed.stdout}',
        file=sys.stderr,
    )
    return 1


if __name__ == '__main__':
    sys.exit(main())
