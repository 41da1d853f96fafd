"""What the system tests share."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root() -> Path:
    "The top folder of the project."
    return ROOT


@pytest.fixture
def run_python():
    "Runs Python in a process of its own: run_python('-c', 'print(1)', cwd=folder)."

    def run(*args, **options):
        options = {"capture_output": True, "text": True, "timeout": 300, **options}
        return subprocess.run([sys.executable, *map(str, args)], **options)

    return run


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """An image folder of 8x8 digits, so small that an epoch takes a moment."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, folder = load_digits(), tmp_path_factory.mktemp('data') / 'pictures'
    for i in range(300):
        path = folder / ('train' if i < 200 else 'test') / str(digits.target[i])
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(path / f'{i}.png')
    return folder
