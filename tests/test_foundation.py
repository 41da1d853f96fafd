"""The house holds: a broken notebook, a drifted file or a second home for a fact is noticed."""

import configparser
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml


def code(source: str, **extra) -> dict:
    return {
        "cell_type": "code", "id": f"c{abs(hash(source)) % 10**7}", "metadata": {},
        "source": source.splitlines(True), "outputs": [], "execution_count": None, **extra,
    }  # fmt: skip


def write_notebook(path: Path, *cells: dict) -> None:
    text = {
        'cell_type': 'markdown',
        'id': 'title',
        'metadata': {},
        'source': ['# Tiny\n', '\n', '> A chapter'],
    }
    notebook = {'cells': [text, *cells], 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 5}
    path.write_text(json.dumps(notebook, indent=1, sort_keys=True) + '\n', encoding='utf-8')


@pytest.fixture
def house(tmp_path, root, run_python):
    "A copy of the house with one tiny chapter, in step; `house(...)` runs Python in it."
    for name in ('settings.ini', 'pyproject.toml', '_quarto.yml', '.gitignore'):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(root / '.ci', tmp_path / '.ci')
    (tmp_path / 'nbs').mkdir()
    shutil.copy(root / 'nbs/index.ipynb', tmp_path / 'nbs')
    shutil.copy(root / 'nbs/_quarto.yml', tmp_path / 'nbs')
    write_notebook(
        tmp_path / 'nbs/00_tiny.ipynb',
        code('#| default_exp tiny'),
        code("#| export\ndef two() -> int:\n    'Two.'\n    return 2"),
        code('assert two() == 2'),
    )
    subprocess.run(['git', 'init', '-q', '.'], cwd=tmp_path, check=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}

    def run(*args):
        return run_python(*args, cwd=tmp_path, env=env)

    run('.ci/in_step.py')
    run.path = tmp_path
    return run


def nbdev_test(house):
    return house(
        '-c', "from nbdev.test import nbdev_test; nbdev_test.__wrapped__('nbs/00_tiny.ipynb')"
    )


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding='utf-8')
    assert old in text
    path.write_text(text.replace(old, new), encoding='utf-8')


def test_a_house_in_step_stays_untouched(house):
    done = house('.ci/in_step.py')
    assert done.returncode == 0, done.stderr
    assert 'in step' in done.stdout
    passed = nbdev_test(house)
    assert passed.returncode == 0, passed.stderr


def test_a_failing_cell_fails_nbdev_test(house):
    edit(house.path / 'nbs/00_tiny.ipynb', 'assert two() == 2', 'assert two() == 3')
    done = nbdev_test(house)
    assert done.returncode == 1
    assert '00_tiny.ipynb' in done.stderr


@pytest.mark.parametrize(
    ('name', 'old', 'new'),
    [
        ('normnotes/tiny.py', 'return 2', 'return 3'),
        ('nbs/00_tiny.ipynb', '"execution_count": null', '"execution_count": 7'),
        ('README.md', '# normnotes', '# normnote'),
        ('nbs/nbdev.yml', 'website:', 'website:  # by hand'),
        ('nbs/00_tiny.ipynb', 'Open in Colab', 'Open in Kolab'),
        ('nbs/reference/tiny.ipynb', 'show_doc(tiny.two', 'show_doc(tiny.three'),
    ],
    ids=['module', 'execution counts', 'README', 'nbdev.yml', 'Colab badge', 'reference'],
)
def test_a_drifted_file_is_named_and_mended(house, name, old, new):
    right = (house.path / name).read_text(encoding='utf-8')
    edit(house.path / name, old, new)
    done = house('.ci/in_step.py')
    assert done.returncode == 1
    assert name in done.stderr
    assert (house.path / name).read_text(encoding='utf-8') == right


def test_a_module_never_exported_is_noticed(house):
    write_notebook(
        house.path / 'nbs/01_more.ipynb', code('#| default_exp more'), code('#| export\nthree = 3')
    )
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


@pytest.fixture
def in_step(root):
    "The script .ci/in_step.py as a module."
    spec = importlib.util.spec_from_file_location('in_step', root / '.ci/in_step.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


OWNER = r'(github|githubusercontent)\.com/{0}|{0}\.github\.io|google\.com/github/{0}'


def written_by_hand(path: Path, name: str, in_step) -> str:
    "A file without the lines and cells that in_step.py writes into it, and they are only left out if they are exact."
    text = path.read_text(encoding='utf-8', errors='ignore')
    if name == 'README.md':
        for made in (
            in_step.readme_badges(),
            in_step.cell_markdown(*in_step.address_cells('index.ipynb')),
        ):
            text = text.replace(made, '', 1)
        return re.sub(
            rf'\]\({re.escape(in_step.site())}/(reference/\w+|explorer)\.html', '](', text
        )
    if name.startswith(
        'nbs/reference/'
    ):  # made as a whole; the owner stands in the source links of constants
        return re.sub(r'^ *"\[source\]\([^)]*\)\{.*$', '', text, flags=re.M)
    if name.startswith('nbs/') and name.endswith('.ipynb'):
        made = in_step.address_cells(Path(name).name)
        return json.dumps([cell for cell in json.loads(text)['cells'] if cell not in made])
    return text


def git_files(root: Path, *options: str) -> list[str]:
    "The files that git lists. An sdist has all of them, and no git."
    if not (root / '.git').exists():
        pytest.skip('no clone: there is no .git')
    command = ['git', 'ls-files', *options]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split('\n') if name and (root / name).is_file()]


def test_owner_and_host_stand_in_settings_alone(root, in_step):
    "A fork changes settings.ini and nothing else; what is generated follows."
    generated = {'settings.ini', 'normnotes/_modidx.py', 'nbs/nbdev.yml'}
    names = [n for n in git_files(root, '-co', '--exclude-standard') if n not in generated]
    assert len(names) > 10
    owner = re.compile(OWNER.format('normnotes'))
    holders = [n for n in names if owner.search(written_by_hand(root / n, n, in_step))]
    assert holders == []


def test_a_fork_changes_settings_alone(house):
    edit(house.path / 'settings.ini', 'user = normnotes', 'user = somebody')
    edit(house.path / 'settings.ini', 'doc_host = https://normnotes', 'doc_host = https://somebody')
    done = house('.ci/in_step.py')
    assert done.returncode == 1
    old, new = (re.compile(OWNER.format(name)) for name in ('normnotes', 'somebody'))
    texts = {p.relative_to(house.path).as_posix(): p.read_text(encoding="utf-8", errors="ignore")
             for p in house.path.rglob("*.*") if p.is_file() and ".git" not in p.parts}  # fmt: skip
    assert [name for name, text in texts.items() if old.search(text)] == []
    holders = {name for name, text in texts.items() if new.search(text)}
    assert {'README.md', 'nbs/00_tiny.ipynb', 'nbs/nbdev.yml', 'normnotes/_modidx.py'} <= holders


def test_readme_opens_with_two_one_line_commands(root):
    readme = (root / 'README.md').read_text(encoding='utf-8')
    commands = re.findall(r'^```sh\n(.*?)\n```$', readme, flags=re.M | re.S)[:2]
    assert all('\n' not in c and 'venv' in c for c in commands)
    assert 'normnotes compare' in commands[0]
    assert '[dev]' in commands[1] and commands[1].index('nbdev_test') < commands[1].index('pytest')


def test_the_readme_links_to_the_site_where_a_notebook_alone_shows_little(in_step):
    source = '[a](reference/norms.ipynb#make_norm) [b](learn/explorer.ipynb) [c](normalization/sets.ipynb#one-formula)'
    links = '[a]({0}/reference/norms.html#make_norm) [b]({0}/explorer.html) [c](nbs/00_sets.ipynb#one-formula)'
    assert in_step.cell_markdown({'cell_type': 'markdown', 'source': [source]}) == links.format(
        in_step.site()
    )


def test_a_package_index_gets_no_relative_link(root, run_python):
    done = run_python('-X', 'utf8', 'setup.py', '--long-description', cwd=root, encoding='utf-8')
    assert done.returncode == 0, done.stderr
    targets = re.findall(r'\]\(([^)\s]+)|(?:src|srcset|href)=\"([^\"]+)\"', done.stdout)
    assert len(targets) > 20 and any(link.endswith('/LICENSE') for link, _ in targets)
    assert [target for target in map(''.join, targets) if not re.match('https://|#', target)] == []


def test_an_sdist_holds_what_git_holds(root, run_python, tmp_path):
    done = run_python('setup.py', '-q', 'egg_info', '--egg-base', tmp_path, cwd=root)
    assert done.returncode == 0, done.stderr
    held = (tmp_path / 'normnotes.egg-info/SOURCES.txt').read_text(encoding='utf-8').split('\n')
    assert sorted(set(git_files(root)) - set(held)) == []


@pytest.mark.parametrize(
    ("source", "about"),
    [
        ("SIZES = {'small': 1, 'large': 2}  # by name", "by name"),
        ("SIZES = {'small': 1, 'large': 2}", "`small`, `large`"),
        ("STEPS: tuple[str, ...] = ('one', 'two', 'three', 'four', 'five', 'six', 'seven')",
         "`one`, `two`, `three`, `four`, `five`, `six`, …"),
        ("SIZES: dict[str, int] = {**{}}", "`dict[str, int]`"),
        (f"LONG = sum([{', '.join(['number'] * 20)}])", f"`sum([{'number, ' * 9}…`"),
        ("def two():\n    'Two.\\n\\nNo more.'", "Two."),
    ],
)  # fmt: skip
def test_what_the_reference_says_of_a_name(in_step, tmp_path, source, about):
    name = re.search(r'[A-Z]+|two', source)[0]
    (tmp_path / 'module.py').write_text(f"__all__ = ['{name}']\n{source}\n", encoding='utf-8')
    [found] = in_step.public_names(tmp_path / 'module.py')
    assert found.about == about


def test_workflows(root):
    "A release waits for the tests, a deployment is never cut off, and the oldest torch is a job of its own."
    test, release, deploy = (
        yaml.safe_load((root / f'.github/workflows/{name}.yaml').read_text(encoding='utf-8'))
        for name in ('test', 'release', 'deploy')
    )
    assert 'workflow_call' in test[True]  # YAML reads `on` so
    assert release['jobs']['test']['uses'] == './.github/workflows/test.yaml'
    assert 'test' in release['jobs']['publish']['needs']
    assert deploy['concurrency']['cancel-in-progress'] is False
    matrix = test['jobs']['test']['strategy']['matrix']
    for row in matrix[
        'include'
    ]:  # GitHub merges a row that contradicts none of the lists into their jobs
        assert any(row[key] not in values for key, values in matrix.items() if key in row), row


CELLS = json.loads(
    (Path(__file__).parent.parent / 'nbs/use/recipes.ipynb').read_text(encoding='utf-8')
)['cells']
TEXT = ''.join(''.join(cell['source']) + '\n' for cell in CELLS if cell['cell_type'] == 'markdown')


@pytest.mark.parametrize('title', re.findall(r'^## (.+)$', TEXT, re.M))
def test_every_recipe_stands_alone(title, tmp_path, monkeypatch):
    "A section in a fresh namespace and an empty folder"
    monkeypatch.chdir(tmp_path)
    names, here = {}, None
    for cell in CELLS:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            here = (re.findall(r'^## (.+)$', source, re.M) or [here])[-1]
        elif here == title and 'workplace' not in source:
            exec(source, names)
    assert names
