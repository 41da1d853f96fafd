"""Check the installed wheel: every module imports without nbdev, and `Net` imports little."""

import importlib
import importlib.metadata as metadata
import importlib.util
import pkgutil
import sys

import torch

with_torch = set(sys.modules)  # torch brings some of these itself
Net = importlib.import_module('normnotes.models').Net

heavy = {'matplotlib', 'pandas', 'scipy', 'sklearn', 'torchvision', 'PIL', 'tqdm', 'fastcore'}
heavy &= set(sys.modules) - with_torch
assert not heavy, f'`from normnotes.models import Net` also imports {sorted(heavy)}'
assert sum(p.numel() for p in Net('bn').parameters()) == 8286

normnotes = importlib.import_module('normnotes')
where = normnotes.__file__
assert '.venv' not in where and 'site-packages' in where, where
assert importlib.util.find_spec('nbdev') is None, 'nbdev came with the wheel'
assert int(metadata.version('fastcore').split('.')[0]) >= 2, metadata.version('fastcore')
modules = [m.name for m in pkgutil.walk_packages(normnotes.__path__, 'normnotes.')]
for name in modules:
    importlib.import_module(name)
assert 'normnotes.compare.results' in modules, 'the wheel lacks the parts of normnotes.compare'
assert 'fastcore' not in sys.modules, 'fastcore is loaded before it is used'
print('The data folder:', importlib.import_module('normnotes.core').data_folder())  # by fastcore
print(f'normnotes {normnotes.__version__}: all {len(modules)} modules import')
print(f'with torch {torch.__version__} and fastcore {metadata.version("fastcore")}')
