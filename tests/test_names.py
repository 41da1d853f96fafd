"""The names that others rely on: imports, signatures, the command and the files that it writes."""

import importlib
import inspect

import pytest
import torch

from normnotes import cli

NAMES = {
    'sets': 'NORMS norm_kind parse_norm divisors stat_sets count_sets set_stats draw_sets',
    'norms': 'BatchNorm2d LayerNorm2d GroupNorm InstanceNorm2d RMSNorm2d make_norm',
    'surgery': 'swap_norms recompute_stats fold_batchnorm',
    'doctor': 'examine Report Finding',
    'augment': 'Augment AUGMENTS augment',
    'data': 'load_data load_if_cached DATASETS DataSet Split Batches normalize',
    'models': 'Net CifarNet MODELS make_model count_params save_model load_model',
    'summary': 'param_table',
    'penalties': 'l1_penalty l2_penalty soft_threshold_ percent_zero layer_sparsity',
    'training': 'TrainConfig fit evaluate l1_penalty Evaluation Run DivergedError',
    'plotting': 'plot_curves plot_misclassified plot_seeds plot_differences plot_sweep',
    'studies': 'Variant Study run_study Results Comparison STUDIES CLAIMS write_report',
    'cli': 'main',
}
SIGNATURES = {
    'sets.stat_sets': ['kind', 'shape', 'groups'],
    'norms.make_norm': ['kind', 'num_channels', 'groups', 'impl'],
    'doctor.examine': ['model', 'data', 'optimizer', 'loss'],
    'data.load_data': ['name', 'data_dir', 'device', 'progress'],
    'training.fit': ['model', 'data', 'config'],
    'training.l1_penalty': ['model'],
    'studies.run_study': ['study', 'out', 'jobs', 'data_dir', 'device', 'progress'],
}
COLUMNS = 'variant,seed,epoch,train_loss,train_acc,penalty,test_loss,test_acc,lr,seconds'


@pytest.mark.parametrize('module', NAMES)
def test_the_names_of_a_module(module):
    found = vars(importlib.import_module(f'normnotes.{module}'))
    assert [name for name in NAMES[module].split() if name not in found] == []


@pytest.mark.parametrize('path', SIGNATURES)
def test_arguments_keep_their_names_and_order(path):
    module, name = path.split('.')
    function = getattr(importlib.import_module(f'normnotes.{module}'), name)
    known = list(inspect.signature(function).parameters)
    assert [name for name in known if name in SIGNATURES[path]] == SIGNATURES[path]


@pytest.mark.parametrize('name', ['BatchNorm2d', 'GroupNorm', 'InstanceNorm2d'])
def test_a_layer_takes_the_arguments_of_torch(name):
    ours = getattr(importlib.import_module('normnotes.norms'), name)
    theirs = inspect.signature(getattr(torch.nn, name)).parameters
    assert [p for p in inspect.signature(ours).parameters if p in theirs] == list(theirs)


def test_the_command_its_subcommands_and_the_columns_of_its_table():
    assert ','.join(importlib.import_module('normnotes.studies').COLUMNS) == COLUMNS
    assert all(
        cli.main([c, '--help']) == 0 for c in 'compare study studies report data doctor'.split()
    )
    assert cli.main(['no-such-command']) == 2


LIGHT = [  # steps of one program, and what none of them may load
    ("from normnotes import cli; cli.main(['--version'])", 'torch numpy pandas scipy matplotlib'),
    ('import normnotes.look', 'matplotlib'),
    (
        "import torch; own = {*sys.modules}; from normnotes.models import Net; Net('gn')",
        'matplotlib pandas torchvision sklearn scipy safetensors tqdm fastcore joblib PIL IPython'
        ' nbdev',
    ),
    ('import normnotes.data', 'torchvision sklearn PIL pandas matplotlib'),
    ('import normnotes.plotting', 'matplotlib.pyplot'),
]


def test_imports_are_light(run_python):
    lines = ['import sys', 'own = set()']  # what torch itself loads
    for step, heavy in LIGHT:
        lines += [step, f'found = {set(heavy.split())} & (sys.modules.keys() - own)']
        lines += [f'assert not found, ({step!r}, found)']
    done = run_python('-c', '\n'.join(lines))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('normnotes ')
