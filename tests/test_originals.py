"""The originals as published: their sizes, their slips, and runs that are stopped."""

import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from normnotes.batches import Split
from normnotes.data import DataSet
from normnotes.models import count_params

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))
import originals

EVA8, EVA6, EVA4 = (originals.ORIGINALS[name] for name in ('eva8', 'eva6', 'eva4'))


@pytest.fixture(scope='module')
def images():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (160, 1, 28, 28), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (160,), generator=draw)
    train, test = Split(pixels[:100], labels[:100]), Split(pixels[100:], labels[100:])
    return DataSet.of('noise', train, test, map(str, range(10)), 'random pixels')


def test_every_arm_has_the_published_size():
    for original, usual, per_pixel in (
        (EVA8, 9_910, 66_974),
        (EVA6, 8_880, 44_712),
        (EVA4, 8_286, None),
    ):
        for name, arm in original.arms.items():
            expected = per_pixel if name == 'ln per pixel' else usual
            assert count_params(arm.model(0)) == expected, name


def test_the_leaked_penalty_reaches_group_norm_and_spares_layer_norm():
    model = EVA8.arms['gn'].model(0)
    total = sum(p.abs().sum().item() for p in model.parameters())
    for name, arm in EVA8.arms.items():
        penalty = float(torch.as_tensor(arm.l1(model, 0)).detach())
        assert penalty == (pytest.approx(5e-4 * total) if '+l1' in name else 0), name


def test_a_mean_is_next_to_nothing_and_a_fading_penalty_fades():
    model = EVA6.arms['bn'].model(0)
    means = [p.abs().mean().item() for p in model.parameters()]
    assert EVA6.arms['bn+l1'].l1(model, 7).item() == pytest.approx(1e-4 * sum(means))
    first, later = (EVA4.arms['l1'].l1(model, batch).item() for batch in (0, 99))
    assert later == pytest.approx(first / 100)
    assert [arm.momentum for arm in EVA4.arms.values()] == [0.9, 0.9, 0, 0, 0.9]
    assert [arm.cut for arm in EVA4.arms.values()] == [3, 0, 3, 3, 0]


def test_one_cycle_moves_the_momentum_against_the_rate():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], EVA6.lr, 0.9)
    schedule = originals.make_schedule(EVA6, EVA6.arms['bn'], optimizer, 10)
    seen = []
    for _ in range(199):
        optimizer.step()
        schedule.step()
        seen.append((optimizer.param_groups[0]['lr'], optimizer.param_groups[0]['momentum']))
    assert optimizer.defaults['momentum'] == 0.9  # which the schedule overrides, as in EVA6
    assert max(seen)[0] == pytest.approx(0.015, rel=0.01)
    assert max(seen)[1] == pytest.approx(0.85, abs=0.01)
    assert seen[-1][1] == pytest.approx(0.95, abs=0.01)


def test_turning_by_a_right_angle_moves_pixels_only():
    x = torch.rand(2, 1, 4, 4)
    turned = originals.turn(x, torch.tensor([0.0, 90.0]))
    assert torch.allclose(turned[0], x[0])
    assert torch.allclose(turned[1], x[1].rot90(1, (1, 2)), atol=1e-6) or torch.allclose(
        turned[1], x[1].rot90(-1, (1, 2)), atol=1e-6
    )


@pytest.mark.parametrize('name', ['eva6', 'eva4'])
def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, images, monkeypatch, name):
    short = replace(originals.ORIGINALS[name], epochs=2)
    arm = list(short.arms)[-2]
    whole = originals.train(short, short.arms[arm], 3, images, tmp_path / 'whole')
    count, evaluate = [], originals.evaluate

    def stop(*args):
        count.append(1)
        if len(count) == 2:
            raise KeyboardInterrupt
        return evaluate(*args)

    monkeypatch.setattr(originals, 'evaluate', stop)
    with pytest.raises(KeyboardInterrupt):
        originals.train(short, short.arms[arm], 3, images, tmp_path / 'stopped')
    rows, said = originals.train(short, short.arms[arm], 3, images, tmp_path / 'stopped')
    drop = [{k: v for k, v in row.items() if k != 'seconds'} for row in (*whole[0], *rows)]
    assert drop[:2] == drop[2:]
    assert torch.equal(said.predictions, whole[1].predictions)


def test_stored_runs_are_not_trained_again(tmp_path, images, monkeypatch, capsys):
    short = replace(EVA8, epochs=1)
    out = tmp_path / 'out'
    originals.run('eva8', out, [0], ['gn', 'bn'], images, short)
    for path in sorted((out / 'runs').rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    before = pd.read_csv(out / 'results.csv')
    originals.run('eva8', out, [0, 1], ['gn'], images, short)
    after = pd.read_csv(out / 'results.csv')
    assert capsys.readouterr().out.count('gn-s0 epoch 1: ') == 1
    assert sorted(zip(after.variant, after.seed, strict=True)) == [('bn', 0), ('gn', 0), ('gn', 1)]
    merged = after.merge(before, on=['variant', 'seed', 'test_loss', 'seconds'])
    assert len(merged) == len(before)
    assert set(originals.stored(out)[1]) == {('bn', 0), ('gn', 0), ('gn', 1)}
    with pytest.raises(SystemExit, match='another study'):
        originals.run('eva8', out, [0], ['gn'], images, replace(short, lr=0.5))


def test_a_run_whose_rows_were_not_written_is_added_again(tmp_path, images, monkeypatch):
    short, write = replace(EVA8, epochs=1), originals.write_atomic

    def stop(path, content):
        if path.name == 'results.csv':
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(originals, 'write_atomic', stop)
    with pytest.raises(KeyboardInterrupt):
        originals.run('eva8', tmp_path, [0], ['gn'], images, short)
    monkeypatch.undo()
    originals.run('eva8', tmp_path, [0], ['gn'], images, short)
    assert len(pd.read_csv(tmp_path / 'results.csv')) == 1
