"""What normnotes.data does when files, folders, processes or the network misbehave. All offline."""

import os
import socket
import stat
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from normnotes.batches import Batches, Split
from normnotes.core import write_atomic
from normnotes.data import DATASETS, DataSet, DatasetSpec, load_data


def small_set(seed=0, name='small'):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(60) % 3)
    return DataSet.of(name, split[:40], split[40:], 'abc', 'made for a test')


@pytest.fixture
def reads(monkeypatch):
    "A data set 'small' in the table, and the list of folders it was read for"
    calls = []
    monkeypatch.setitem(
        DATASETS, 'small', DatasetSpec(lambda folder, quiet: calls.append(folder) or small_set())
    )
    return calls


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)


@pytest.fixture
def pictures(tmp_path):
    "An image folder of two classes, 12 images"
    rng = np.random.default_rng(0)
    for part, count in (('train', 4), ('test', 2)):
        for name in ('cat', 'dog'):
            (tmp_path / 'pets' / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / 'pets' / part / name / f'{i}.png')
    return tmp_path / 'pets'


def same(one, other):
    assert (one.name, one.classes, one.mean, one.std, one.source) == (
        other.name,
        other.classes,
        other.mean,
        other.std,
        other.source,
    )
    for part in ('train', 'test'):
        for what in ('images', 'labels'):
            assert torch.equal(
                getattr(getattr(one, part), what), getattr(getattr(other, part), what)
            )


# the cache


def test_read_once(reads, tmp_path):
    first = load_data('small', root=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(load_data('small', root=tmp_path), first)
    assert len(reads) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['small.safetensors']


def damage_nothing_left(data):
    return b''


def damage_cut_in_header(data):
    return data[:50]


def damage_cut_in_half(data):
    return data[: len(data) // 2]


def damage_last_byte_gone(data):
    return data[:-1]


def damage_more_at_the_end(data):
    return data + b'x'


def damage_one_bit_in_images(data):
    return data[:-300] + bytes([data[-300] ^ 1]) + data[-299:]


def damage_class_name(data):
    return data.replace(b'\\"b\\"', b'\\"x\\"')


def damage_checksum(data):
    at = data.index(b'sha256') + 12
    return data[:at] + (b'0' if data[at : at + 1] != b'0' else b'1') + data[at + 1 :]


def damage_another_format(data):
    return b'\x80\x04K\x01.' * 100


def damage_header_length(data):
    return b'\xff' * 8 + data[8:]


@pytest.mark.parametrize(
    'damage', [f for name, f in list(globals().items()) if name.startswith('damage_')]
)
def test_damaged_cache_is_noticed_and_made_again(reads, tmp_path, damage):
    good = load_data('small', root=tmp_path)
    cache = tmp_path / 'small.safetensors'
    data = cache.read_bytes()
    assert damage(data) != data
    cache.write_bytes(damage(data))
    with pytest.warns(UserWarning, match='damaged') as told:
        same(load_data('small', root=tmp_path), good)
    assert len(told) == 1 and '\n' not in str(told[0].message)
    assert len(reads) == 2
    same(load_data('small', root=tmp_path), good)
    assert len(reads) == 2


def test_every_altered_byte_is_noticed(reads, tmp_path):
    good = load_data('small', root=tmp_path)
    cache = tmp_path / 'small.safetensors'
    data = cache.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(data), 60, replace=False):
        cache.write_bytes(
            data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
        )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            same(load_data('small', root=tmp_path), good)


def test_cache_of_another_key_is_out_of_date_not_damaged(monkeypatch, tmp_path):
    monkeypatch.setitem(DATASETS, 'small', DatasetSpec(lambda folder, quiet: small_set(1), key='old'))
    load_data('small', root=tmp_path)
    monkeypatch.setitem(DATASETS, 'small', DatasetSpec(lambda folder, quiet: small_set(2), key='new'))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        same(load_data('small', root=tmp_path), small_set(2))


def test_cache_is_a_folder(reads, tmp_path):
    (tmp_path / 'small.safetensors').mkdir()
    with pytest.warns(UserWarning):
        same(load_data('small', root=tmp_path), small_set())


# folders that cannot be used


def test_data_folder_cannot_be_made(reads, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.warns(UserWarning, match='stays in memory only') as told:
        same(load_data('small', root=tmp_path / 'file' / 'data'), small_set())
    assert len(told) == 1


@pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='the superuser may write everywhere'
)
def test_read_only_folder(reads, tmp_path):
    tmp_path.chmod(0o555)
    try:
        with pytest.warns(UserWarning, match='stays in memory only'):
            same(load_data('small', root=tmp_path), small_set())
    finally:
        tmp_path.chmod(0o755)


def test_unwritable_disk(reads, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.warns(UserWarning, match='No space left'):
        same(load_data('small', root=tmp_path), small_set())
    assert list(tmp_path.iterdir()) == []


# write_atomic


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / 'a.txt'
    write_atomic(path, 'old')

    def fails(temporary):
        temporary.write_text('ne')
        raise RuntimeError('stopped')

    with pytest.raises(RuntimeError, match='stopped'):
        write_atomic(path, fails)
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_contents_suffix_and_permissions(tmp_path):
    write_atomic(tmp_path / 'new' / 'b.bin', b'\x00\r\n')
    assert (tmp_path / 'new' / 'b.bin').read_bytes() == b'\x00\r\n'
    write_atomic(tmp_path / 'c.txt', 'ä\n')
    assert (tmp_path / 'c.txt').read_bytes() == 'ä\n'.encode()
    seen = []
    write_atomic(tmp_path / 'd.png', lambda path: seen.append(path) or path.write_bytes(b'x'))
    assert seen[0].suffix == '.png' and seen[0].parent == tmp_path
    if os.name == 'posix':
        (tmp_path / 'plain').write_text('')
        mode = stat.S_IMODE((tmp_path / 'plain').stat().st_mode)
        assert stat.S_IMODE((tmp_path / 'c.txt').stat().st_mode) == mode


def run(code, *args, **options):
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_reader_on_windows_is_waited_for(tmp_path, monkeypatch):
    path, replace, tries = tmp_path / 'a.txt', os.replace, []

    def busy(source, target):
        tries.append(target)
        if len(tries) < waits:
            raise PermissionError(13, 'Access is denied')
        replace(source, target)

    monkeypatch.setattr(os, 'replace', busy)
    monkeypatch.setattr('normnotes.data.sleep', lambda seconds: None)
    waits = 2
    with pytest.raises(PermissionError):  # elsewhere it is no passing state
        write_atomic(path, 'no')
    monkeypatch.setattr(sys, 'platform', 'win32')
    tries.clear()
    waits = 4
    write_atomic(path, 'new')
    assert path.read_text() == 'new' and len(tries) == 4
    tries.clear()
    waits = 100
    with pytest.raises(PermissionError, match='denied'):
        write_atomic(path, 'never')
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['a.txt']


WRITER = """
import sys
from normnotes.core import write_atomic
for i in range(150): write_atomic(sys.argv[1], sys.argv[2] * 200_000)
"""


def test_readers_never_see_half_a_file(tmp_path):
    path = tmp_path / 'shared.txt'
    write_atomic(path, 'a' * 200_000)
    writers = [run(WRITER, path, letter) for letter in 'ab']
    looks = 0
    while any(writer.poll() is None for writer in writers):
        text = path.read_text()
        assert len(text) == 200_000 and len(set(text)) == 1
        looks += 1
        time.sleep(0.002)
    assert [writer.wait() for writer in writers] == [0, 0], (
        writers[0].stderr.read() + writers[1].stderr.read()
    )
    assert looks > 10 and os.listdir(tmp_path) == ['shared.txt']


def test_killed_while_writing(tmp_path):
    path = tmp_path / 'shared.txt'
    write_atomic(path, 'old')
    code = WRITER.replace(
        'sys.argv[2] * 200_000',
        "lambda t: (t.write_text('half'), print('now', flush=True), __import__('time').sleep(60))",
    )
    process = run(code, path, 'x')
    assert process.stdout.readline() == 'now\n'
    process.kill()
    process.wait()
    assert path.read_text() == 'old'


LOADER = """
import sys
from normnotes.data import load_data
print('ready', flush=True)
sys.stdin.readline()
data = load_data(sys.argv[1], root=sys.argv[2])
print(int(data.train.images.long().sum()), len(data.train), len(data.test))
"""


def test_two_processes_at_once(pictures, tmp_path):
    processes = [run(LOADER, pictures, tmp_path / 'cache', stdin=subprocess.PIPE) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ['ready\n'] * 2
    for process in processes:  # both have imported what they need; now they start together
        process.stdin.write('go\n')
        process.stdin.flush()
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0] == outputs[1] and outputs[0][1] == ''
    assert len(list((tmp_path / 'cache').iterdir())) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        data = load_data(pictures, root=tmp_path / 'cache')
    assert int(data.train.images.long().sum()) == int(outputs[0][0].split()[0])


# image folders


def test_corrupt_images_are_named_counted_and_refused(pictures, tmp_path):
    (pictures / 'train' / 'cat' / '1.png').write_bytes(
        (pictures / 'train' / 'cat' / '0.png').read_bytes()[:200]
    )
    (pictures / 'train' / 'dog' / '2.png').write_bytes(b'')
    (pictures / 'test' / 'dog' / '0.png').write_text('no image')
    with pytest.raises(ValueError) as refused:
        load_data(pictures, root=tmp_path)
    for words in (
        '3 of 12',
        'train/cat/1.png',
        'train/dog/2.png',
        'test/dog/0.png',
        "on_corrupt='skip'",
    ):
        assert words in str(refused.value)
    with pytest.warns(UserWarning, match='3 of 12') as told:
        data = load_data(pictures, root=tmp_path, on_corrupt='skip')
    assert len(told) == 1
    assert (len(data.train), len(data.test)) == (6, 3)
    assert '3 corrupt files left out' in data.source
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    same(load_data(pictures, root=tmp_path, on_corrupt='skip'), data)


def test_no_readable_image_of_a_class(pictures, tmp_path):
    for i in range(2):
        (pictures / 'test' / 'dog' / f'{i}.png').write_bytes(b'')
    with pytest.warns(UserWarning), pytest.raises(ValueError, match='no readable image in dog'):
        load_data(pictures, root=tmp_path, on_corrupt='skip')


def test_images_keep_their_pixels_and_classes(pictures, tmp_path):
    data = load_data(pictures, root=tmp_path)
    assert data.shape == (3, 10, 10) and data.classes == ('cat', 'dog')
    expected = np.array(Image.open(pictures / 'train' / 'dog' / '3.png')).transpose(2, 0, 1)
    assert (data.train.images[-1].numpy() == expected).all()


@pytest.mark.parametrize('change', ['altered', 'added', 'removed', 'renamed'])
def test_cache_follows_the_files(pictures, tmp_path, change):
    before = load_data(pictures, root=tmp_path)
    file = pictures / 'train' / 'dog' / '3.png'
    if change == 'altered':
        stamp = file.stat()
        Image.new('RGB', (10, 10), 'red').save(file)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1_000_000_000))
    elif change == 'added':
        Image.new('RGB', (10, 10), 'red').save(file.with_name('4.png'))
    elif change == 'removed':
        file.unlink()
    else:
        for part in ('train', 'test'):
            (pictures / part / 'dog').rename(pictures / part / 'wolf')
    after = load_data(pictures, root=tmp_path)
    assert (len(after.train), after.classes) == {
        'altered': (8, ('cat', 'dog')),
        'added': (9, ('cat', 'dog')),
        'removed': (7, ('cat', 'dog')),
        'renamed': (8, ('cat', 'wolf')),
    }[change]
    if change == 'altered':
        assert not torch.equal(before.train.images, after.train.images)


def test_hidden_and_other_files_are_no_images(pictures, tmp_path):
    (pictures / 'train' / 'cat' / '.DS_Store').write_bytes(b'x')
    (pictures / 'train' / 'cat' / '._0.png').write_bytes(b'x')
    (pictures / 'train' / 'cat' / 'notes.txt').write_text('x')
    (pictures / 'train' / '.hidden').mkdir()
    assert len(load_data(pictures, root=tmp_path).train) == 8


@pytest.mark.parametrize(
    'break_it, words',
    [
        (lambda p: __import__('shutil').rmtree(p / 'test'), "no folder 'test'"),
        (lambda p: (p / 'train' / 'cow').mkdir(), 'no images in cow'),
        (
            lambda p: (p / 'test' / 'cat').rename(p / 'test' / 'cow'),
            'only in train: cat, only in test: cow',
        ),
    ],
)
def test_wrong_folders(pictures, tmp_path, break_it, words):
    break_it(pictures)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        load_data(pictures, root=tmp_path)


@pytest.mark.parametrize(
    'options, words',
    [
        ({'on_corrupt': 'ignore'}, "use 'refuse' or 'skip'"),
        ({'size': 0}, 'size=0'),
        ({'colr': True}, 'colr'),
    ],
)
def test_wrong_options(pictures, tmp_path, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        load_data(pictures, root=tmp_path, **options)


def test_home_is_found(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    assert len(load_data('~/pets', root=tmp_path).train) == 8


def test_large_pictures_are_shrunk_with_a_warning(pictures, tmp_path):
    for file in pictures.rglob('*.png'):
        Image.new('RGB', (300, 200)).save(file)
    with pytest.warns(UserWarning, match=r'larger than 256 pixels .* 32x32; choose with size='):
        assert load_data(pictures, root=tmp_path / 'a').shape == (3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert load_data(pictures, root=tmp_path / 'a', size=300).shape == (3, 300, 300)
        for file in pictures.rglob('*.png'):
            Image.new('RGB', (256, 200)).save(file)
        assert load_data(pictures, root=tmp_path / 'a').shape == (3, 200, 256)


# no network


@pytest.mark.parametrize(
    'name, file',
    [
        ('mnist', 'train-images-idx3-ubyte.gz'),
        ('cifar10', 'cifar-10-python.tar.gz'),
        ('fashion-mnist', 't10k-labels-idx1-ubyte.gz'),
    ],
)
def test_no_network(offline, tmp_path, capfd, name, file):
    with pytest.raises(ConnectionError) as told:
        load_data(name, root=tmp_path / 'data', quiet=True)
    for words in (
        name,
        'Name or service not known',
        file,
        str(tmp_path / 'data'),
        'NORMNOTES_DATA',
        "'digits'",
    ):
        assert words in str(told.value)
    assert list((tmp_path / 'data').iterdir()) == []  # nothing half-downloaded stays
    assert capfd.readouterr().err == ''


def test_digits_need_neither_network_nor_folder(offline, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    assert len(load_data('digits', root=tmp_path / 'file').train) == 1297


def write_idx(folder, train=60, test=30):
    "MNIST's four files, with made-up images"
    raw = folder / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (('train', train), ('t10k', test)):
        sizes = b''.join(n.to_bytes(4, 'big') for n in (0x803, count, 28, 28))
        (raw / f'{part}-images-idx3-ubyte').write_bytes(
            sizes + rng.integers(0, 256, count * 784, np.uint8).tobytes()
        )
        sizes = b''.join(n.to_bytes(4, 'big') for n in (0x801, count))
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(
            sizes + (np.arange(count) % 10).astype(np.uint8).tobytes()
        )
    return raw


def test_files_in_the_folder_need_no_network(offline, tmp_path):
    raw = write_idx(tmp_path)
    data = load_data('mnist', root=tmp_path)
    assert (len(data.train), len(data.test), data.classes) == (60, 30, tuple('0123456789'))
    for file in raw.iterdir():
        file.unlink()
    same(load_data('mnist', root=tmp_path), data)  # from the cache


def test_truncated_files_are_not_taken(offline, tmp_path):
    raw = write_idx(tmp_path)
    images = raw / 'train-images-idx3-ubyte'
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(ConnectionError, match='could not be downloaded'):
        load_data('mnist', root=tmp_path)


# batches

EPOCH = """
import hashlib, sys, torch
from normnotes.batches import Batches
from normnotes.data import load_data
torch.set_num_threads(1)
data, digest = load_data(), hashlib.sha256()
for x, y in Batches(data.train, 128, data.mean, data.std, augment='eva6', seed=3).epoch(5):
    digest.update(x.numpy().tobytes() + y.numpy().tobytes())
print(digest.hexdigest())
"""


def test_an_epoch_is_the_same_in_another_process():
    outputs = {run(EPOCH).communicate()[0] for _ in range(2)}
    assert len(outputs) == 1 and len(outputs.pop()) == 65


def test_importing_is_light():
    code = (
        'import sys, normnotes.data; '
        "print([m for m in ('torchvision', 'sklearn', 'PIL', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    assert run(code).communicate()[0] == '[]\n'


@pytest.mark.parametrize(
    'side, batch_size, most', [(28, 128, 1024), (256, 16, 128), (256, 300, 300)]
)
def test_large_images_are_changed_a_few_at_a_time(monkeypatch, side, batch_size, most):
    from normnotes import data

    split = Split(
        torch.randint(0, 256, (1, 1, side, side), dtype=torch.uint8).expand(1100, -1, -1, -1),
        torch.arange(1100),
    )
    sizes = []
    monkeypatch.setattr(data, 'normalize', lambda x, mean, std: sizes.append(len(x)) or x)
    batches = [y for _, y in Batches(split, batch_size, (0.5,), (0.2,)).epoch(0)]
    assert max(sizes) == most and sum(sizes) == 1100
    assert [len(y) for y in batches[:-1]] == [batch_size] * (len(batches) - 1)


def test_the_chunk_does_not_change_the_batches(monkeypatch):
    data = load_data()

    def epoch():
        return [
            x for x, _ in Batches(data.train, 128, data.mean, data.std, augment='eva6').epoch(1)
        ]

    one = epoch()
    monkeypatch.setattr(Batches, 'chunk', 1)
    for a, b in zip(one, epoch(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_same_batches_on_the_gpu():
    data = load_data()
    for aug in ('light', 'cifar', 'eva6'):
        for (a, y), (b, z) in zip(
            *(
                Batches(d.train, 128, d.mean, d.std, augment=aug).epoch(0)
                for d in (data, data.to('cuda'))
            ),
            strict=True,
        ):
            assert torch.equal(y, z.cpu()) and (a - b.cpu()).abs().max() < 1e-3


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_of_an_epoch_at_the_size_of_mnist():
    code = """
import torch
from normnotes.batches import Batches, Split
split = Split(torch.zeros(60000, 1, 28, 28, dtype=torch.uint8), torch.zeros(60000, dtype=torch.int64))
for x, y in Batches(split, 128, (.1,), (.3,), augment='eva6').epoch(0): pass
print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""
    out, err = run(code).communicate()
    assert int(out) < 1_000_000, err  # kB at the highest, torch included


def test_one_index_is_no_split():
    split = small_set().train
    with pytest.raises(TypeError, match='one index picks no Split'):
        split[0]
    with pytest.raises(TypeError, match='one index picks no Split'):
        next(iter(split))
    assert len(split[0:1]) == len(split[[3]]) == 1
