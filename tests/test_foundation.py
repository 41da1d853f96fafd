"""The house: a broken notebook, a file that drifted or a second home for a fact is noticed."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from execnb.nbio import read_nb, write_nb


def write_notebook(path: Path, *sources: str) -> None:
    "A notebook of a title and these cells; a cell that starts with `<` is the Colab badge."
    code = {'metadata': {}, 'outputs': [], 'execution_count': None, 'cell_type': 'code'}
    text = {'metadata': {}, 'cell_type': 'markdown'}
    cells = [text | {'id': 'title', 'source': ['# Tiny\n', '\n', '> A chapter']}]
    for i, source in enumerate(sources):
        kind = text | {'id': 'colab'} if source[0] == '<' else code | {'id': f'cell{i}'}
        cells.append(kind | {'source': source.splitlines(True)})
    path.parent.mkdir(exist_ok=True)
    write_nb({'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}, path)


@pytest.fixture(scope='module')
def template(tmp_path_factory, root, run_python):
    "A copy of the house with one tiny chapter, in step."
    folder = tmp_path_factory.mktemp('house')
    for name in ('settings.ini', 'pyproject.toml', 'README.md'):
        shutil.copy(root / name, folder)
    shutil.copytree(root / '.ci', folder / '.ci')
    (folder / 'nbs').mkdir()
    shutil.copy(root / 'nbs/index.ipynb', folder / 'nbs')
    shutil.copy(root / 'nbs/_quarto.yml', folder / 'nbs')
    (folder / '_quarto.yml').write_text('sidebar:\n  - learn/tiny.ipynb\n', encoding='utf-8')
    write_notebook(
        folder / 'nbs/learn/tiny.ipynb',
        '<a href="https://x/github/me/normnotes/blob/old/nbs/00_tiny.ipynb">Open in Colab</a>',
        '#| default_exp small.tiny',
        '#| export\ndef two() -> int:\n    "Two."\n    return 2',
        'assert two() == 2',
        'show_doc(two)',
    )
    run_python('.ci/in_step.py', cwd=folder, env=bare_environment())
    return folder


def bare_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != 'PYTHONPATH' and not k.startswith('GIT_')}


@pytest.fixture
def house(tmp_path, template, run_python):
    "A copy of the template; `house(...)` runs Python in it."
    shutil.copytree(template, tmp_path, dirs_exist_ok=True)

    def run(*args):
        return run_python(*args, cwd=tmp_path, env=bare_environment())

    run.path = tmp_path
    return run


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new), encoding='utf-8')


def test_a_house_in_step_stays_untouched(house):
    before = {p: p.read_bytes() for p in house.path.rglob('*.*') if p.is_file()}
    done = house('.ci/in_step.py')
    assert done.returncode == 0, done.stderr
    assert {p: p.read_bytes() for p in house.path.rglob('*.*') if p.is_file()} == before
    index = (house.path / 'nbs/reference.ipynb').read_text(encoding='utf-8')
    assert '| [two](learn/tiny.ipynb#two) | Two. |' in index


def test_a_failing_cell_fails_nbdev_test(house):
    edit(house.path / 'nbs/learn/tiny.ipynb', 'assert two() == 2', 'assert two() == 3')
    test = "from nbdev.test import nbdev_test; nbdev_test.__wrapped__('nbs/learn/tiny.ipynb')"
    done = house('-c', test)
    assert done.returncode == 1
    assert 'tiny.ipynb' in done.stderr


DRIFTS = {
    'normnotes/small/tiny.py': ('return 2', 'return 3'),
    'nbs/learn/tiny.ipynb': ('blob/main/nbs/learn/tiny', 'blob/main/nbs/large'),
    'README.md': ('# normnotes', '# normnote'),
    'nbs/nbdev.yml': ('website:', 'website:  # by hand'),
    'nbs/reference.ipynb': ('Two.', 'Three.'),
}


def test_files_that_drifted_are_named_and_mended(house):
    right = {name: (house.path / name).read_text(encoding='utf-8') for name in DRIFTS}
    for name, drift in DRIFTS.items():
        edit(house.path / name, *drift)
    write_notebook(house.path / 'nbs/learn/more.ipynb', '#| default_exp more', '#| export\nx = 3')
    done = house('.ci/in_step.py')
    assert done.returncode == 1
    for name in (*DRIFTS, 'normnotes/more.py'):  # a module that was never exported
        assert f'{name} was not in step' in done.stderr
    for name, text in right.items():
        assert (house.path / name).read_text(encoding='utf-8') == text, name


def test_settings_are_flat_and_complete(root):
    "Comments and interpolation do not survive nbdev_bump_version."
    text = (root / 'settings.ini').read_text(encoding='utf-8')
    assert not re.search(r'^\s*[#;]|%\(', text, flags=re.M)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    assert parser['DEFAULT']['min_python'] == '3.10'
    assert 'pkg_resources' not in (root / 'setup.py').read_text(encoding='utf-8')


def test_a_fork_changes_settings_alone(house):
    edit(house.path / 'settings.ini', 'user = normnotes', 'user = somebody')
    edit(house.path / 'settings.ini', 'doc_host = https://normnotes', 'doc_host = https://somebody')
    done = house('.ci/in_step.py')
    assert done.returncode == 1
    owner = r'(github\.com/{0}/|{0}\.github\.io|/github/{0}/)'
    paths = [p for p in house.path.rglob('*.*') if p.is_file() and 'settings.ini' != p.name]
    texts = {p.name: p.read_text(encoding='utf-8') for p in paths}
    assert [n for n, text in texts.items() if re.search(owner.format('normnotes'), text)] == []
    holders = {n for n, text in texts.items() if re.search(owner.format('somebody'), text)}
    assert {'README.md', 'tiny.ipynb', 'index.ipynb', 'nbdev.yml', '_modidx.py'} <= holders


def test_a_package_index_gets_no_relative_link(root, run_python):
    done = run_python('-X', 'utf8', 'setup.py', '--long-description', cwd=root, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    targets = re.findall(r'\]\(([^)\s]+)|(?:src|srcset|href)=\"([^\"]+)\"', done.stdout)
    assert len(targets) > 20 and any(link.endswith('/LICENSE') for link, _ in targets)
    assert [t for t in map(''.join, targets) if not re.match('https://|#', t)] == []


def test_an_sdist_holds_what_git_holds(root, run_python, tmp_path):
    if not (root / '.git').exists():
        pytest.skip('no clone: there is no .git')
    done = run_python('setup.py', '-q', 'egg_info', '--egg-base', tmp_path, cwd=root)
    assert done.returncode == 0, done.stderr
    held = (tmp_path / 'normnotes.egg-info/SOURCES.txt').read_text(encoding='utf-8').split('\n')
    listed = subprocess.check_output(['git', 'ls-files'], cwd=root, text=True).split('\n')
    assert [name for name in listed if (root / name).is_file() and name not in held] == []


def recipes() -> dict[str, list[str]]:
    "The code of each section of the page of recipes."
    found, title = {}, None
    for cell in read_nb(Path(__file__).parents[1] / 'nbs/use/recipes.ipynb').cells:
        if cell.cell_type == 'markdown':
            title = (re.findall(r'^## (.+)$', cell.source, re.M) or [title])[-1]
        elif title and 'workplace' not in cell.source:
            found.setdefault(title, []).append(cell.source)
    return found


@pytest.mark.parametrize('title', recipes())
def test_every_recipe_stands_alone(title, tmp_path, monkeypatch):
    "In a fresh namespace and an empty folder."
    monkeypatch.chdir(tmp_path)
    exec('\n\n'.join(recipes()[title]), {})
