"""Figures on dark pages, in notebooks without pyplot, in loops and in files."""

import gc
import weakref
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import style
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

mpl.use('Agg')
import matplotlib.pyplot as plt
import torch
from torch import nn

from normnotes import plotting
from normnotes.batches import Split
from normnotes.data import DataSet
from normnotes.evaluation import Evaluation
from normnotes.inside import record_activations, running_stats
from normnotes.look import book_style, image_bytes, new_axes, save_figure, separate_labels
from normnotes.plotting import plot_accuracy, plot_misclassified, variant_style
from normnotes.studies import STUDIES

VARIANTS = ['bn', 'bn+l1', 'bn+l2', 'bn+l1+l2', 'ln', 'gn', 'in', 'lnc', 'none']


def history(variants=('bn+l1', 'ln', 'gn'), seeds=3, epochs=8):
    rng = np.random.default_rng(0)
    rows = []
    for number, variant in enumerate(variants):
        for seed in range(seeds):
            for epoch in range(1, epochs + 1):
                acc = 99 - 60 * np.exp(-epoch / 2) - 4 * number + rng.normal(0, 0.2)
                rows.append((variant, seed, epoch, acc, acc - 2))
    table = pd.DataFrame(rows, columns=['variant', 'seed', 'epoch', 'test_acc', 'train_acc'])
    return table.assign(test_loss=100 - table.test_acc, train_loss=0.1)


def digits():
    split = Split(torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.arange(20) % 10)
    return DataSet('toy', split, split, tuple('0123456789'), (0.5,), (0.5,), 'made up')


def evaluation():
    labels = digits().test.labels
    return Evaluation(labels.flip(0), torch.full((20,), 0.5), torch.zeros(20), labels)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


def contrast(color, page):
    def luminance(color):
        parts = np.array(to_rgb(color))
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted([luminance(color), luminance(page)])
    return (high + 0.05) / (low + 0.05)


def pixels(fig, tmp_path):
    image = Image.open(save_figure(fig, tmp_path / 'figure.png'))
    return np.asarray(image.convert('RGB')).astype(int)


def boxes_of(texts):
    return [Text.get_window_extent(text) for text in texts]


def labels_lie_apart(panel):
    boxes = sorted(boxes_of(panel.texts), key=lambda box: box.y0)
    return all(above.y0 >= below.y1 - 1 for below, above in pairwise(boxes))


@pytest.mark.parametrize('page', ['white', 'black'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_lines_are_seen_on_white_and_on_black(variant, page):
    assert contrast(variant_style(variant)['color'], page) > 1.6


@pytest.mark.parametrize('page', ['default', 'dark_background'])
def test_the_page_is_dark_only_if_chosen_and_lines_keep_their_colours(tmp_path, page):
    with style.context(page):
        image = pixels(plot_accuracy(history()), tmp_path)
    assert (image[0, 0] == (255 if page == 'default' else 0)).all()
    for variant in ('bn+l1', 'ln', 'gn'):
        color = 255 * np.array(to_rgb(variant_style(variant)['color']))
        assert (np.abs(image - color).max(-1) < 6).sum() > 200


@pytest.mark.parametrize('ending', ['png', 'svg', 'pdf'])
def test_the_same_figure_gives_the_same_bytes(tmp_path, ending):
    first, second, third = (tmp_path / f'{n}.{ending}' for n in range(3))
    fig = plot_accuracy(history())
    save_figure(fig, first)
    save_figure(fig, second)
    save_figure(plot_accuracy(history()), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()


def test_a_drawing_has_few_colours_and_photographs_keep_theirs(tmp_path):
    def colors(fig):
        return len(np.unique(pixels(fig, tmp_path).reshape(-1, 3), axis=0))

    assert colors(plot_accuracy(history())) <= 256
    noise = torch.randint(0, 256, (20, 3, 96, 96), dtype=torch.uint8)
    split = Split(noise, digits().test.labels)
    photos = DataSet('photos', split, split, tuple('0123456789'), (0.5,) * 3, (0.5,) * 3, 'noise')
    assert colors(plot_misclassified(evaluation(), photos)) > 10_000


def test_a_small_file_changes_no_number_in_a_text():
    fig, (panel,) = new_axes(None, 1, 1, (3, 2))
    panel.set_title('0.0170 and 12.3456')
    assert b'>0.0170 and 12.3456<' in image_bytes(fig, 'svg')


def test_no_figure_is_kept_and_no_setting_of_matplotlib_is_changed():
    before, backend, kept = dict(mpl.rcParams), mpl.get_backend(), []
    for _ in range(25):  # pyplot would warn at the twenty-first, and keep all
        kept.append(weakref.ref(plotting.plot_class_accuracy({'bn': evaluation()}, digits())))
    gc.collect()
    assert plt.get_fignums() == [] and not any(ref() for ref in kept)
    assert dict(mpl.rcParams) == before and mpl.get_backend() == backend


PLOTS = {
    'accuracy': lambda: plot_accuracy(history()),
    'loss': lambda: plotting.plot_loss(history()),
    'one metric': lambda: plotting.plot_curves(history(), 'test_acc', zoom=False),
    'misclassified': lambda: plot_misclassified(evaluation(), digits()),
    'missed by all': lambda: plotting.plot_missed_by_all({'bn': evaluation()}, digits()),
    'confusion': lambda: plotting.plot_confusion(evaluation(), digits()),
    'class accuracy': lambda: plotting.plot_class_accuracy({'bn': evaluation()}, digits()),
    'weights': lambda: plotting.plot_weights({'bn': net(), 'bn+l1': net()}),
    'sparsity': lambda: plotting.plot_sparsity({'bn': net(), 'bn+l1': net()}),
    'activations': lambda: plotting.plot_activations(
        {'bn': record_activations(net(), torch.randn(4, 1, 8, 8)).assign(epoch=1)}
    ),
    'running statistics': lambda: plotting.plot_running_stats(running_stats(net(), digits())),
}


@pytest.mark.parametrize('page', ['book', 'dark_background'])
@pytest.mark.parametrize('plot', PLOTS)
def test_what_is_written_can_be_read_on_its_page(tmp_path, plot, page):
    with mpl.rc_context():
        style.use('dark_background')
        if page == 'book':  # it also takes back what another style has set
            style.use('default')
            book_style()
        fig = PLOTS[plot]()
        image = pixels(fig, tmp_path)
    background = image[0, 0] / 255
    assert (background == (1 if page == 'book' else 0)).all()
    ink = image.max(-1) < 90 if page == 'book' else image.min(-1) > 200
    assert ink.mean() > 0.002
    inside = {text for panel in fig.axes for text in panel.texts}
    outside = {text for text in fig.findobj(Text) if text.get_text()} - inside
    assert outside and all(contrast(text.get_color(), background) > 3 for text in outside)


# of 96 variants nobody draws the curves together
DRAWN = [study for study in STUDIES.values() if len(study.variants) < 50]


@pytest.mark.parametrize('study', DRAWN, ids=[study.name for study in DRAWN])
def test_no_two_variants_of_a_study_look_alike(study):
    styles = [variant_style(name) for name in study.variants]
    # curves that show both splits have only colour and marker left
    assert len({(s['color'], str(s['marker'])) for s in styles}) == len(styles)


DIFFERENT = list({study.variants: study for study in DRAWN}.values())


@pytest.mark.parametrize(('study', 'seeds'), [(s, 1 + i % 2) for i, s in enumerate(DIFFERENT)])
def test_names_of_every_study_fit_on_the_figure(study, seeds):
    frame = history(study.variants, seeds=seeds, epochs=6)
    frame['test_acc'] = 98 + (frame.test_acc - 98) / 20  # the lines end close together
    fig = plot_accuracy(frame, title=study.name)
    for _ in range(3):
        fig.draw_without_rendering()
    panel = fig.axes[-1]
    boxes, legend = boxes_of(panel.texts), fig.legends[0].get_window_extent()
    assert len(boxes) == len(study.variants) and fig.bbox.width <= 7.5 * fig.dpi
    for box in [*boxes, legend]:
        assert min(box.x0, box.y0) >= -1 and box.x1 <= fig.bbox.x1 + 1 and box.y1 <= fig.bbox.y1 + 1
    assert labels_lie_apart(panel) and not any(box.overlaps(legend) for box in boxes)
    values = [float(text.get_text().rstrip(' ↑↓').split()[-1]) for text in panel.texts]
    by_height = np.argsort([box.y0 for box in boxes])
    assert [values[i] for i in by_height] == sorted(values)  # the highest on top
    assert all(panel.get_window_extent().width > 0.4 * fig.bbox.width for panel in fig.axes)


def test_labels_move_by_as_little_as_possible():
    rng, gap = np.random.default_rng(0), 0.07
    for _ in range(50):
        targets = np.sort(rng.random(rng.integers(1, 12)))
        places = separate_labels(targets, gap, 0, 1)
        assert (np.diff(places) >= gap - 1e-9).all() and 0 <= places[0] and places[-1] <= 1
        for i, step in np.ndindex(len(targets), 2):  # no other move brings the labels closer
            other = places.copy()
            other[i] += 1e-4 if step else -1e-4
            if (np.diff(other) >= gap).all() and 0 <= other[i] <= 1:
                assert ((other - targets) ** 2).sum() >= ((places - targets) ** 2).sum() - 1e-9


@pytest.mark.parametrize('first', ['', '%matplotlib inline'])
def test_a_figure_shows_exactly_once_in_a_notebook(first):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    load = f'import io, pandas as pd\nframe = pd.read_csv(io.StringIO({history().to_csv()!r}))\n'
    load += 'from normnotes.plotting import plot_accuracy'
    cells = [first, load, 'plot_accuracy(frame)', 'fig = plot_accuracy(frame)', 'fig']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(nb, kernel_name='python3', timeout=120).execute()
    kinds = {'image/svg+xml', 'image/png'}  # drawings, unless the notebook asks for pixels
    shown = [[o for o in cell.outputs if kinds & set(o.get('data', {}))] for cell in nb.cells]
    assert list(map(len, shown)) == [0, 0, 1, 0, 1]
