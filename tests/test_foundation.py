"""The house: a broken notebook, a file that drifted or a second home for a fact is noticed."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
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


@pytest.fixture
def house(tmp_path, root, run_python):
    "A copy of the house with one tiny chapter, in step; `house(...)` runs Python in it."
    for name in ('settings.ini', 'pyproject.toml', 'README.md'):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / '.ci', tmp_path / '.ci')
    (tmp_path / 'nbs').mkdir()
    shutil.copy(root / 'nbs/index.ipynb', tmp_path / 'nbs')
    shutil.copy(root / 'nbs/_quarto.yml', tmp_path / 'nbs')
    (tmp_path / '_quarto.yml').write_text('sidebar:\n  - learn/tiny.ipynb\n', encoding='utf-8')
    write_notebook(
        tmp_path / 'nbs/learn/tiny.ipynb',
        '<a href="https://x/github/me/normnotes/blob/old/nbs/00_tiny.ipynb">Open in Colab</a>',
        '#| default_exp small.tiny',
        '#| export\ndef two() -> int:\n    "Two."\n    return 2',
        'assert two() == 2',
        'show_doc(two)',
    )
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH' and not k.startswith('GIT_')}

    def run(*args):
        return run_python(*args, cwd=tmp_path, env=env)

    run('.ci/in_step.py')
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


@pytest.mark.parametrize('name', DRIFTS)
def test_a_file_that_drifted_is_named_and_mended(house, name):
    right = (house.path / name).read_text(encoding='utf-8')
    edit(house.path / name, *DRIFTS[name])
    done = house('.ci/in_step.py')
    assert done.returncode == 1
    assert name in done.stderr
    assert (house.path / name).read_text(encoding='utf-8') == right


def test_a_module_never_exported_is_noticed(house):
    write_notebook(house.path / 'nbs/learn/more.ipynb', '#| default_exp more', '#| export\nx = 3')
    done = house('.ci/in_step.py')
    assert done.returncode == 1
    assert 'normnotes/more.py' in done.stderr


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


def test_readme_opens_with_two_one_line_commands(root):
    readme = (root / 'README.md').read_text(encoding='utf-8')
    commands = re.findall(r'^```sh\n(.*?)\n```$', readme, flags=re.M | re.S)[:2]
    assert all('\n' not in c and 'venv' in c for c in commands)
    assert 'normnotes compare' in commands[0]
    assert '[dev]' in commands[1] and commands[1].index('nbdev_test') < commands[1].index('pytest')


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


def test_workflows(root):
    "A release waits for the tests, and a deployment is never cut off."
    test, release, deploy = (
        yaml.safe_load((root / f'.github/workflows/{name}.yaml').read_text(encoding='utf-8'))
        for name in ('test', 'release', 'deploy')
    )
    assert 'workflow_call' in test[True]  # YAML takes `on` for True
    assert release['jobs']['test']['uses'] == './.github/workflows/test.yaml'
    assert 'test' in release['jobs']['publish']['needs']
    assert deploy['concurrency']['cancel-in-progress'] is False


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
