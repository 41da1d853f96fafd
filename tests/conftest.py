"""What the system tests share."""

import subprocess
import sys
from pathlib import Path

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
