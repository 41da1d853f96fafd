"""The installed wheel as a stranger has it: every module imports, without nbdev, and `Net` stays light."""

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
assert '.venv' not in normnotes.__file__ and 'site-packages' in normnotes.__file__, (
    normnotes.__file__
)
assert importlib.util.find_spec('nbdev') is None, 'nbdev came with the wheel'
assert int(metadata.version('fastcore').split('.')[0]) >= 2, metadata.version('fastcore')
modules = [m.name for m in pkgutil.iter_modules(normnotes.__path__)]
for name in modules:
    importlib.import_module(f'normnotes.{name}')
print(f'normnotes {normnotes.__version__}: {", ".join(modules)} import')
print(f'with torch {torch.__version__} and fastcore {metadata.version("fastcore")}')
