"""What the system tests share."""

import os

# Before torch loads: the tests run in two processes, on two cores.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import functools
import http.server
import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# A shell starts background jobs with Ctrl-C ignored, and every child inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope='session')
def root() -> Path:
    "The top folder of the project."
    return ROOT


@pytest.fixture(scope='session')
def run_python():
    "Runs Python in a process of its own: run_python('-c', 'print(1)', cwd=folder)."

    def run(*args, **options):
        options = {'capture_output': True, 'text': True, 'timeout': 300, **options}
        return subprocess.run([sys.executable, *map(str, args)], **options)

    return run


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    "An image folder of 8x8 digits, so small that an epoch takes a moment."
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, folder = load_digits(), tmp_path_factory.mktemp('data') / 'pictures'
    for i in range(300):
        path = folder / ('train' if i < 200 else 'test') / str(digits.target[i])
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).save(path / f'{i}.png')
    return folder


@pytest.fixture(scope='session')
def node(tmp_path_factory):
    "node(script, cases) runs a module beside the scripts of the pages; what it prints as JSON."
    if (found := shutil.which('node')) is None:
        pytest.skip('no Node on the PATH')

    def run(script, cases=(), *options):
        folder = tmp_path_factory.mktemp('node')
        for path in (ROOT / 'nbs/learn').glob('*.js'):
            shutil.copy(path, folder)
        (folder / 'package.json').write_text('{"type": "module"}', encoding='utf-8')
        (folder / 'cases.json').write_text(json.dumps(cases), encoding='utf-8')
        (folder / 'run.js').write_text(script, encoding='utf-8')
        command = [found, *options, 'run.js']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


# A browser and a little server, for the tests of pages

BROWSERS = 'chromium chromium-browser google-chrome google-chrome-stable chrome msedge'.split()


@pytest.fixture(scope='session')
def chromium():
    "Headless Chromium or Chrome, the one of this machine. Skipped where there is none."
    reason = 'the tests of pages need Playwright: pip install playwright'
    playwright = pytest.importorskip('playwright.sync_api', reason=reason)
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as tools:
        where = {'executable_path': path} if path else {'channel': 'chrome'}
        try:
            browser = tools.chromium.launch(args=['--no-sandbox'], **where)
        except playwright.Error as error:
            if path:
                raise
            pytest.skip(f'no Chromium or Chrome on this machine: {str(error).splitlines()[0]}')
        yield browser
        browser.close()


@pytest.fixture(scope='session')
def serve():
    "serve(folder) is the address of a little server that hands out the files of a folder."

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    servers = []

    def start(folder):
        handler = functools.partial(Quiet, directory=str(folder))
        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{servers[-1].server_port}'

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
