"""What the data room does when files, folders, processes or the network misbehave. All offline."""

import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from normnotes import batches
from normnotes.augment import Augment
from normnotes.batches import Batches, Split
from normnotes.core import write_atomic
from normnotes.data import DATASETS, DataSet, DatasetSpec, load_data, load_if_cached

pytestmark = pytest.mark.filterwarnings('error::UserWarning')


def small_set():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(60) % 3)
    return DataSet.of('small', split[:40], split[40:], 'abc', 'made for a test')


@pytest.fixture
def reads(monkeypatch):
    "A data set 'small' in the table, and the list of folders that it was read from."
    calls = []

    def read(folder, download):
        calls.append(folder)
        return small_set()

    monkeypatch.setitem(DATASETS, 'small', DatasetSpec(read, 'small.safetensors'))
    return calls


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)


@pytest.fixture
def pictures(tmp_path):
    "An image folder of two classes, 12 images."
    rng = np.random.default_rng(0)
    for part, count in (('train/cat', 4), ('train/dog', 4), ('test/cat', 2), ('test/dog', 2)):
        (tmp_path / 'pets' / part).mkdir(parents=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'pets' / part / f'{i}.png')
    return tmp_path / 'pets'


def same(a, b):
    assert (a.checksum, a.classes, a.source) == (b.checksum, b.classes, b.source)


# the cache


def test_read_once(reads, tmp_path):
    first = load_data('small', tmp_path)
    same(load_data('small', tmp_path), first)
    assert len(reads) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['small.safetensors']


def test_the_checksum_is_of_everything():
    data, others = small_set(), [small_set() for _ in range(4)]
    assert all(other.checksum == data.checksum for other in others)
    others[0].train.images[3, 0, 2, 2] ^= 1
    others[1].test.labels[0] = 2
    others[2].mean = (0.5,)
    others[3].test = others[3].test[:-1]
    assert len({data.checksum, *(other.checksum for other in others)}) == 5


DAMAGES = {
    'cut in half': lambda data: data[: len(data) // 2],
    'another format': lambda data: b'\x80\x04K\x01.' * 100,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_cache_is_noticed_and_made_again(reads, tmp_path, damage):
    good = load_data('small', tmp_path)
    cache = tmp_path / 'small.safetensors'
    data = cache.read_bytes()
    cache.write_bytes(DAMAGES[damage](data))
    assert cache.read_bytes() != data
    with pytest.warns(UserWarning, match='damaged') as caught:
        same(load_data('small', tmp_path), good)
    assert len(caught) == 1 and '\n' not in str(caught[0].message)
    assert caught[0].filename == __file__  # it points at the caller
    same(load_data('small', tmp_path), good)
    assert len(reads) == 2


# folders that cannot be used


@pytest.mark.parametrize('case', ['cache is a folder', 'file in the way', 'full disk'])
def test_without_a_cache_the_data_stay_in_memory(reads, tmp_path, monkeypatch, case):
    def full(*args):
        raise OSError(28, 'No space left on device')

    folder = tmp_path / 'data'
    if case == 'cache is a folder':
        (folder / 'small.safetensors').mkdir(parents=True)
    elif case == 'file in the way':
        folder.write_text('in the way')
    else:
        monkeypatch.setattr(os, 'fsync', full)
    with pytest.warns(UserWarning, match=r'memory only|is damaged'):
        same(load_data('small', folder), small_set())
    assert not list(tmp_path.rglob('*.tmp*'))


# files


def run(code, *args, **options):
    command = [sys.executable, '-c', code, *map(str, args)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    return subprocess.Popen(command, **pipes, **options)


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
    assert [writer.wait() for writer in writers] == [0, 0], writers[0].stderr.read()
    assert looks > 10 and os.listdir(tmp_path) == ['shared.txt']


LOADER = """
import sys
from normnotes.data import load_data
print('ready', flush=True)
sys.stdin.readline()
print(load_data(sys.argv[1], sys.argv[2]).checksum)
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
    assert load_data(pictures, tmp_path / 'cache').checksum == outputs[0][0].strip()


# image folders


def test_images_keep_their_pixels_and_classes(pictures, tmp_path):
    data = load_data(pictures, tmp_path)
    assert data.shape == (3, 10, 10) and data.classes == ('cat', 'dog')
    expected = np.array(Image.open(pictures / 'train' / 'dog' / '3.png')).transpose(2, 0, 1)
    assert (data.train.images[-1].numpy() == expected).all()


def test_corrupt_images_are_named_counted_and_refused(pictures, tmp_path):
    half = (pictures / 'train/cat/0.png').read_bytes()[:200]
    corrupt = {'train/cat/1.png': half, 'train/dog/2.png': b'', 'test/dog/0.png': b'no image'}
    for name, content in corrupt.items():
        (pictures / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        load_data(pictures, tmp_path)
    assert all(words in str(refused.value) for words in ('3 of 12', *corrupt, "='skip'"))
    with pytest.warns(UserWarning, match='3 of 12') as caught:
        data = load_data(pictures, tmp_path, on_corrupt='skip')
    assert len(caught) == 1 and caught[0].filename == __file__
    assert (len(data.train), len(data.test)) == (6, 3) and '3 corrupt files' in data.source
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    same(load_data(pictures, tmp_path, on_corrupt='skip'), data)
    (pictures / 'test/dog/1.png').write_bytes(b'')  # the last of its class
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r'same classes.*dog'):
        load_data(pictures, tmp_path, on_corrupt='skip')


def test_the_cache_follows_the_files(pictures, tmp_path):
    file, sums = pictures / 'train' / 'dog' / '3.png', [load_data(pictures, tmp_path).checksum]

    def reload():
        data = load_data(pictures, tmp_path)
        sums.append(data.checksum)
        return len(data.train), data.classes

    Image.new('RGB', (10, 10), 'red').save(file)
    os.utime(file, ns=(0, 0))
    assert reload() == (8, ('cat', 'dog'))
    Image.new('RGB', (10, 10), 'red').save(file.with_name('4.png'))
    assert reload() == (9, ('cat', 'dog'))
    file.unlink()
    assert reload() == (8, ('cat', 'dog'))
    for part in ('train', 'test'):
        (pictures / part / 'dog').rename(pictures / part / 'wolf')
    assert reload() == (8, ('cat', 'wolf'))
    assert (
        len(set(sums)) == 3
    )  # the red image was copied and renamed, the classes' names do not count


def test_hidden_and_other_files_are_no_images(pictures, tmp_path):
    for name in ('.DS_Store', '._0.png', 'notes.txt'):
        (pictures / 'train' / 'cat' / name).write_bytes(b'x')
    (pictures / 'train' / '.hidden').mkdir()
    (pictures / 'train' / '.hidden' / '0.png').write_bytes(b'x')
    if os.name == 'posix':
        (pictures / 'train' / 'cat' / 'loop').symlink_to('..')
        (pictures / 'train' / 'cat' / 'self.png').symlink_to('self.png')
        (pictures / 'train' / 'nowhere').symlink_to('nowhere')
    assert len(load_data(pictures, tmp_path).train) == 8


def test_wrong_folders_and_options(pictures, tmp_path):
    (pictures / 'test' / 'cat').rename(pictures / 'test' / 'cow')
    with pytest.raises(ValueError, match=r"test has \['cow', 'dog'\]"):
        load_data(pictures, tmp_path)
    (pictures / 'test').rename(pictures / 'best')
    with pytest.raises(ValueError, match=r"'dog'\], test has \[\]"):
        load_data(pictures, tmp_path)
    for options in ({'on_corrupt': 'ignore'}, {'size': 0}, {'progress': 'much'}):
        with pytest.raises(ValueError, match=f'{next(iter(options.values()))}'):
            load_data(pictures, tmp_path, **options)
    with pytest.raises(TypeError, match='colour'):
        load_data('digits', tmp_path, colour=True)
    with pytest.raises(ValueError, match='mnist'):
        load_data('mnits', tmp_path)


def save_all(folder, image, **options):
    for file in folder.rglob('*.*'):
        image.save(file.with_suffix('.png'), **options)


def test_without_a_common_size_images_are_made_32x32_with_a_warning(pictures, tmp_path):
    save_all(pictures, Image.new('RGB', (300, 200)))
    with pytest.warns(UserWarning, match=r'32x32.*size='):
        assert load_data(pictures, tmp_path).shape == (3, 32, 32)
    assert load_data(pictures, tmp_path, size=300).shape == (3, 300, 300)
    assert load_data(pictures, tmp_path, size=(12, 10), colour=False).shape == (1, 12, 10)
    save_all(pictures, Image.new('L', (256, 200)))
    Image.new('L', (20, 20)).save(pictures / 'train' / 'cat' / '9.jpg')
    assert load_data(pictures, tmp_path).shape == (1, 200, 256)  # of nearly all
    Image.new('RGB', (20, 20), (200, 0, 0)).save(pictures / 'train' / 'cat' / '9.jpg')
    data = load_data(pictures, tmp_path)
    assert data.shape == (3, 200, 256)  # one in colour is enough
    assert (data.train.images[4].float().mean((1, 2)) - torch.tensor([200, 0, 0])).abs().max() < 2


def test_images_of_all_kinds(pictures, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x112] = 6  # a camera stored it on its side
    stored = np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    stored[..., 2] = 9
    save_all(pictures, Image.fromarray(stored), exif=exif)
    turned = load_data(pictures, tmp_path)
    assert turned.shape == (3, 40, 20) and turned.std[2] == 1  # blue never changes
    assert (turned.test.images[0].numpy() == np.rot90(stored, -1).transpose(2, 0, 1)).all()
    save_all(pictures, Image.fromarray(np.full((9, 9), 0x1234, np.uint16)))
    assert load_data(pictures, tmp_path).train.images.unique().tolist() == [0x12]
    Image.fromarray(np.full((9, 9), 0.7, np.float32)).save(pictures / 'train/cat/f.tiff')
    with pytest.raises(ValueError, match=r'1 of 13.*f\.tiff.*floating point'):
        load_data(pictures, tmp_path)
    (pictures / 'train/cat/f.tiff').unlink()
    Image.new('L', (999, 999)).save(pictures / 'test/dog/huge.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)  # a picture that would fill the memory
    with pytest.raises(ValueError, match=r'1 of 13.*huge\.png'):
        load_data(pictures, tmp_path)


# no network


@pytest.mark.parametrize('name', ['mnist', 'cifar10', 'fashion-mnist'])
def test_no_network(offline, tmp_path, capfd, name):
    file = 'cifar-10-python.tar.gz' if name == 'cifar10' else 'train-images-idx3-ubyte.gz'
    with pytest.raises(ConnectionError) as refused:
        load_data(name, tmp_path, progress='none')
    words = name, 'not known', file, str(tmp_path), 'NORMNOTES_DATA', "'digits'"
    assert all(word in str(refused.value) for word in words)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]
    assert capfd.readouterr().err == ''


def test_digits_need_neither_network_nor_folder(offline, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    assert len(load_data('digits', tmp_path / 'file').train) == 1297


def write_idx(folder, train=60, test=30):
    "MNIST's four files, with made-up images."
    raw = folder / 'MNIST' / 'raw'
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, count in (('train', train), ('t10k', test)):
        head = b''.join(n.to_bytes(4, 'big') for n in (0x803, count, 28, 28))
        pixels = rng.integers(0, 256, count * 784, np.uint8)
        (raw / f'{part}-images-idx3-ubyte').write_bytes(head + pixels.tobytes())
        head = b''.join(n.to_bytes(4, 'big') for n in (0x801, count))
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f'{part}-labels-idx1-ubyte').write_bytes(head + labels.tobytes())
    return raw


def test_files_in_the_folder_need_no_network(offline, tmp_path):
    raw = write_idx(tmp_path)
    data = load_data('mnist', tmp_path)
    assert (len(data.train), len(data.test), data.classes) == (60, 30, tuple('0123456789'))
    for file in raw.iterdir():
        file.unlink()
    same(load_data('mnist', tmp_path), data)  # from the cache
    images = write_idx(tmp_path / 'other') / 'train-images-idx3-ubyte'
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(ConnectionError, match='mnist'):
        load_data('mnist', tmp_path / 'other')


def test_what_is_there_is_loaded_and_nothing_is_downloaded(offline, tmp_path):
    with pytest.warns(UserWarning, match='normnotes data mnist') as caught:
        assert load_if_cached('mnist', tmp_path / 'empty') is None
    assert len(caught) == 1 and caught[0].filename == __file__
    assert not (tmp_path / 'empty').exists()
    write_idx(tmp_path)
    assert len(load_if_cached('mnist', tmp_path).train) == 60
    assert load_if_cached('digits', tmp_path).name == 'digits'
    with pytest.warns(UserWarning, match='gone'):
        assert load_if_cached(tmp_path / 'gone') is None


# augmentation and batches


WRONG = ['blur', 'rotate', 'rotate=abc', 'light=3', '', 'rotate=200', 'scale=1', 'shift=-1', 7]


@pytest.mark.parametrize('wrong', [*WRONG, {'blur': 1}, {'pad': 2.7}, {'shift': np.inf}])
def test_a_wrong_augmentation_is_refused(wrong):
    with pytest.raises(ValueError, match='use '):
        Augment.parse(wrong)


@pytest.mark.parametrize('side, size, most', [(28, 128, 1024), (256, 16, 128), (256, 300, 300)])
def test_large_images_are_changed_a_few_at_a_time(monkeypatch, side, size, most):
    images = torch.randint(0, 256, (1, 1, side, side), dtype=torch.uint8).expand(1100, -1, -1, -1)
    sizes = []
    monkeypatch.setattr(batches, 'normalize', lambda x, mean, std: sizes.append(len(x)) or x)
    drawn = Batches(Split(images, torch.arange(1100)), size, (0.5,), (0.2,))
    lengths = [len(y) for _, y in drawn.epoch(0)]
    assert max(sizes) == most and sum(sizes) == 1100
    assert lengths[:-1] == [size] * (len(drawn) - 1) and sum(lengths) == 1100


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
@pytest.mark.parametrize('aug', ['light', 'cifar', 'eva6'])
def test_same_batches_on_the_gpu(aug):
    data = load_data()
    here, there = (Batches(d.train, 128, d.mean, d.std, aug) for d in (data, data.to('cuda')))
    for (a, y), (b, z) in zip(here.epoch(0), there.epoch(0), strict=True):
        assert torch.equal(y, z.cpu()) and (a - b.cpu()).abs().max() < 1e-3


MEMORY = """
import sys, torch
from normnotes.batches import Batches
from normnotes.data import load_data
data = load_data('mnist', sys.argv[1])
batches = Batches(data.train, 128, data.mean, data.std, augment='eva6').epoch(0)
for _ in zip(range(100), batches): pass
print(next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')))
"""


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='reads /proc')
def test_memory_of_an_epoch_at_the_size_of_mnist(tmp_path):
    write_idx(tmp_path, 60_000, 10_000)
    out, err = run(MEMORY, tmp_path).communicate()
    assert int(out) < 1_200_000, err  # kB at the highest, decoding, caching and torch included
