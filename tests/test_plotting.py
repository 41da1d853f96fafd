"""What does not teach: figures on dark pages, in notebooks without pyplot, in loops, and in other processes."""

import base64
import gc
import io
import os
import subprocess
import sys
import weakref
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

mpl.use('Agg')
import matplotlib.pyplot as plt
import torch
from torch import nn

from normnotes.look import book_style, save_figure
from normnotes.plotting import (
    plot_accuracy,
    plot_activations,
    plot_class_accuracy,
    plot_confusion,
    plot_curves,
    plot_loss,
    plot_misclassified,
    plot_missed_by_all,
    plot_running_stats,
    plot_sparsity,
    plot_weights,
    record_activations,
    variant_style,
)
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
    return pd.DataFrame(rows, columns=['variant', 'seed', 'epoch', 'test_acc', 'train_acc'])


def luminance(color):
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(color, page):
    low, high = sorted([luminance(color), luminance(page)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize('page', ['white', 'black'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_lines_are_seen_on_white_and_on_black(variant, page):
    assert contrast(variant_style(variant)['color'], page) > 1.6


def pixels(fig, tmp_path):
    return np.asarray(Image.open(save_figure(fig, tmp_path / 'figure.png')).convert('RGB')).astype(
        int
    )


def test_the_background_is_white_unless_the_reader_chose_a_dark_style(tmp_path):
    with plt.style.context('default'):
        assert (pixels(plot_accuracy(history()), tmp_path)[0, 0] == 255).all()
    with plt.style.context('dark_background'):
        image = pixels(plot_accuracy(history()), tmp_path)
    assert (image[0, 0] == 0).all()
    assert (image.min(-1) > 240).mean() > 0.005  # labels and axes are written in white
    for variant in ('bn+l1', 'ln', 'gn'):
        near = np.abs(image - 255 * np.array(to_rgb(variant_style(variant)['color']))).max(-1) < 40
        assert near.sum() > 200


def test_a_saved_figure_keeps_its_colours(tmp_path):
    image = pixels(plot_accuracy(history()), tmp_path)
    for variant in ('bn+l1', 'ln', 'gn'):
        near = np.abs(image - 255 * np.array(to_rgb(variant_style(variant)['color']))).max(-1) < 6
        assert near.sum() > 200


@pytest.mark.parametrize('ending', ['png', 'svg', 'pdf'])
def test_the_same_figure_gives_the_same_bytes(tmp_path, ending):
    first, second, third = (tmp_path / f'{n}.{ending}' for n in range(3))
    fig = plot_accuracy(history())
    save_figure(fig, first)
    save_figure(fig, second)
    save_figure(plot_accuracy(history()), third)
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert b'matplotlib' not in first.read_bytes().lower() or ending != 'png'


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_figure(plot_accuracy(history()), tmp_path / 'a.png')
    old = path.read_bytes()

    def refuse(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(OSError, match='disk full'):
        save_figure(plot_accuracy(history(seeds=1)), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ['a.png']


def test_no_figure_is_kept():
    kept = []
    for _ in range(25):  # pyplot would warn at the twenty-first, and keep all
        kept.append(weakref.ref(plot_class_accuracy(evaluation(), digits())))
    plot_confusion(evaluation(), digits())
    gc.collect()
    assert plt.get_fignums() == []
    assert not any(ref() for ref in kept)


def test_settings_of_matplotlib_are_left_alone():
    before, backend = dict(mpl.rcParams), mpl.get_backend()
    plot_accuracy(history())
    plot_confusion(evaluation(), digits())
    assert dict(mpl.rcParams) == before and mpl.get_backend() == backend


def evaluation():
    labels = np.arange(20) % 10
    return SimpleNamespace(
        labels=labels, predictions=labels[::-1].copy(), confidences=np.full(20, 0.5)
    )


def digits():
    images = torch.zeros(20, 1, 8, 8, dtype=torch.uint8)
    test = SimpleNamespace(labels=evaluation().labels, images=images)
    return SimpleNamespace(name='toy', classes=tuple('0123456789'), test=test)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


def running():
    columns = ['layer', 'running_mean', 'true_mean', 'running_var', 'true_var']
    return pd.DataFrame([('a', 0.1, 0.2, 1.0, 1.1), ('b', 0.3, 0.1, 2.0, 1.5)], columns=columns)


PLOTS = {
    'accuracy': lambda: plot_accuracy(history()),
    'loss': lambda: plot_loss(
        history().assign(test_loss=lambda t: 100 - t.test_acc, train_loss=0.1)
    ),
    'one metric': lambda: plot_curves(history(), 'test_acc', zoom=0),
    'misclassified': lambda: plot_misclassified(evaluation(), digits()),
    'missed by all': lambda: plot_missed_by_all({'bn': evaluation(), 'ln': evaluation()}, digits()),
    'confusion': lambda: plot_confusion(evaluation(), digits()),
    'class accuracy': lambda: plot_class_accuracy(
        {'bn': evaluation(), 'ln': evaluation()}, digits()
    ),
    'weights': lambda: plot_weights({'bn': net(), 'bn+l1': net()}),
    'sparsity': lambda: plot_sparsity({'bn': net(), 'bn+l1': net()}),
    'activations': lambda: plot_activations(
        record_activations(net(), torch.randn(4, 1, 8, 8)).assign(epoch=1)
    ),
    'running statistics': lambda: plot_running_stats(running()),
}


STEPS = [(plot, steps) for plot in PLOTS for steps in ('book dark', 'dark default book')]


@pytest.mark.parametrize(('plot', 'steps'), [*STEPS, ('accuracy', 'dark'), ('accuracy', 'book')])
def test_what_is_written_can_be_read_on_its_page(tmp_path, plot, steps):
    from matplotlib import style

    with mpl.rc_context():
        for step in steps.split():
            book_style() if step == 'book' else style.use(
                {'dark': 'dark_background', 'default': 'default'}[step]
            )
        fig = PLOTS[plot]()
        image = pixels(fig, tmp_path)
    dark = steps.endswith('dark')
    assert (image[0, 0] == (0 if dark else 255)).all()
    ink = image.min(-1) > 200 if dark else image.max(-1) < 90
    assert ink.mean() > 0.002
    page = image[0, 0] / 255
    outside = [t for t in fig.findobj(Text) if t.get_text() and t.get_visible()]
    outside = [
        t for t in outside if not any(t in panel.texts for panel in fig.axes)
    ]  # texts in panels
    assert outside and all(contrast(t.get_color(), page) > 3 for t in outside)
    for panel in fig.axes:
        if panel.axison and plot != 'confusion':  # whose panel is grey on every page
            assert to_rgb(panel.get_facecolor()) == tuple(page)


@pytest.mark.parametrize('study', STUDIES.values(), ids=list(STUDIES))
def test_no_two_variants_of_a_study_look_alike(study):
    styles = [tuple(map(str, variant_style(name).values())) for name in study.variants]
    assert len(set(styles)) == len(styles)
    assert len({(color, marker) for color, _, marker in styles}) == len(
        styles
    )  # curves give the line to the split


DIFFERENT = list(
    {study.variants: study for study in STUDIES.values()}.values()
)  # by what stands in the figure


@pytest.mark.parametrize(
    ('study', 'seeds'), [(study, 1 + i % 2) for i, study in enumerate(DIFFERENT)]
)
def test_names_of_every_study_fit_on_the_figure(study, seeds):
    frame = history(study.variants, seeds=seeds, epochs=6)
    frame['test_acc'] = 98 + (frame.test_acc - 98) / 20  # the lines end close together
    fig = plot_accuracy(frame, title=study.name)
    for _ in range(3):
        fig.draw_without_rendering()
    labels = [Text.get_window_extent(t) for t in fig.axes[-1].texts]
    legend = fig.legends[0].get_window_extent()
    assert len(labels) == len(study.variants) and fig.bbox.width <= 7.5 * fig.dpi
    for box in [*labels, legend]:
        assert (
            box.x0 >= -1
            and box.y0 >= -1
            and box.x1 <= fig.bbox.x1 + 1
            and box.y1 <= fig.bbox.y1 + 1
        )
    boxes = sorted((box.y0, box.y1) for box in labels)
    assert all(above[0] >= below[1] - 1 for below, above in pairwise(boxes))
    values = [float(t.get_text().rstrip(' ↑↓').split()[-1]) for t in fig.axes[-1].texts]
    assert [values[i] for i in np.argsort([box.y0 for box in labels])] == sorted(
        values
    )  # the highest on top
    assert not any(box.overlaps(legend) for box in labels)
    assert all(panel.get_window_extent().width > 0.4 * fig.bbox.width for panel in fig.axes)


def test_importing_opens_no_window_and_no_pyplot_figure():
    code = 'import normnotes.plotting, sys; print("matplotlib.pyplot" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == 'False'


@pytest.mark.parametrize('first', ['', 'import matplotlib.pyplot as plt', '%matplotlib inline'])
def test_a_figure_shows_exactly_once_in_a_notebook(first):
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    frame = history(epochs=5).to_csv(index=False)
    load = f'import io, pandas as pd\nframe = pd.read_csv(io.StringIO({frame!r}))\n'
    load += 'from normnotes.plotting import plot_accuracy'
    cells = [first, load, 'plot_accuracy(frame)', 'fig = plot_accuracy(frame)', 'fig']
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(nb, kernel_name='python3', timeout=120).execute()
    shown = [sum('image/png' in out.get('data', {}) for out in cell.outputs) for cell in nb.cells]
    assert shown == [0, 0, 1, 0, 1]
    data = next(
        out.data['image/png'] for out in nb.cells[2].outputs if 'image/png' in out.get('data', {})
    )
    assert Image.open(io.BytesIO(base64.b64decode(data))).width > 600


@pytest.mark.parametrize('count', [1, 2, 6, 12])
def test_labels_do_not_overlap_and_stay_on_the_figure(count):
    variants = [f'gn:{2**n}' for n in range(count)]
    fig = plot_accuracy(history(variants, seeds=2))
    fig.draw_without_rendering()
    boxes = sorted(Text.get_window_extent(t).extents[[1, 3]].tolist() for t in fig.axes[1].texts)
    assert len(boxes) == count
    assert all(above[0] >= below[1] - 1 for below, above in pairwise(boxes))
    assert max(Text.get_window_extent(t).x1 for t in fig.axes[1].texts) <= fig.bbox.x1 + 1


@pytest.mark.parametrize('cols', [2, 5])
def test_mistakes_stand_close_together_under_a_heading_that_fits(cols):
    fig = plot_misclassified(evaluation(), digits(), 3, cols, title='bn+l1=3e-4+l2, seed 0')
    fig.draw_without_rendering()
    first, second = (panel.get_window_extent() for panel in fig.axes[:2])
    assert first.width == pytest.approx(first.height) and second.x0 - first.x1 < 0.6 * first.width
    heading = Text.get_window_extent(fig._suptitle)
    assert heading.x0 >= 0 and heading.x1 <= fig.bbox.x1 and heading.y1 <= fig.bbox.y1
    captions = [Text.get_window_extent(panel.title) for panel in fig.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(captions) for b in [*captions[:i], heading])
