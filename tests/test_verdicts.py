"""What may be said: intervals, verdicts on anybody's table, and the claims of the book."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from normnotes.compare.claims import Claim, ClaimTest
from normnotes.compare.comparison import RUN_METRICS, Comparison, compare_runs
from normnotes.compare.design import Study
from normnotes.compare.presets import STUDIES
from normnotes.compare.published import CLAIMS, check_claim
from normnotes.compare.results import Results, failures
from normnotes.compare.statistics import (
    Contrast,
    default_pairs,
    estimate,
    fisher,
    holm,
    main_effect,
    prob_better,
    seeds_needed,
    share_interval,
    slope_difference,
)
from normnotes.compare.tables import compare_table, read_pairs, read_runs
from normnotes.evaluation import Evaluation

# Intervals


def test_the_interval_over_seeds_is_that_of_the_t_test():
    values = np.random.default_rng(0).normal(0.3, 1, 7)
    ours, theirs = estimate(values), stats.ttest_1samp(values, 0)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval(0.9) == pytest.approx(tuple(theirs.confidence_interval(0.9)))
    assert math.isnan(estimate([1.0]).low) and estimate([1.0, math.nan, 3.0]).n == 2
    assert math.isnan(estimate([2, 2]).p)  # nobody knows how such values scatter


@pytest.mark.parametrize(('flips', 'k'), [(1.0, 4), (0.05, 4), (5.0, 3), (5.0, 2)])
def test_the_crossed_interval_is_an_analysis_of_variance_with_loops(flips, k):
    rng, n = np.random.default_rng(1), 60
    x = rng.normal(0, 1, (k, 1)) + rng.normal(0, 2, n) + flips * rng.normal(0, 1, (k, n))
    grand = x.mean()
    ms_seed = n * sum((x[s].mean() - grand) ** 2 for s in range(k)) / (k - 1)
    ms_image = k * sum((x[:, i].mean() - grand) ** 2 for i in range(n)) / (n - 1)
    rest = [
        (x[s, i] - x[s].mean() - x[:, i].mean() + grand) ** 2
        for s, i in itertools.product(range(k), range(n))
    ]
    ms_rest = sum(rest) / ((k - 1) * (n - 1))
    variance = (max(ms_seed, ms_rest) + max(ms_image - ms_rest, 0)) / (k * n)
    e = estimate(x.mean(1), x)
    assert (e.error**2, e.mean) == pytest.approx((variance, grand))
    used = ms_seed if k > 2 else max(ms_seed, ms_rest)
    assert e.df == pytest.approx((variance * k * n) ** 2 / (used**2 / (k - 1)))
    assert e.flip_variance == pytest.approx(ms_rest / n)


def test_seeds_that_repeat_leave_the_luck_of_the_images():
    d = np.tile(np.random.default_rng(0).choice([-1, 0, 1], 500), (3, 1))
    e = estimate(d.mean(1), d)
    assert e.error == pytest.approx(d[0].std(ddof=1) / 500**0.5) and e.df > 1e9
    assert e.interval() == pytest.approx(
        stats.norm.interval(0.95, d[0].mean(), d[0].std(ddof=1) / 500**0.5)
    )


def alarms(second, images_sd, k, studies=1500, n=100):
    "How often an interval leaves out the true difference, zero; `second`: spread of that variant."
    rng, count = np.random.default_rng(0), 0
    for _ in range(studies):
        luck = rng.normal(0, 1, k) - second * rng.normal(0, 1, k)
        d = luck[:, None] + n**0.5 * rng.normal(0, 1, (k, n))
        d += n**0.5 * images_sd * rng.normal(0, 1, n)
        count += estimate(d.mean(1), d).p < 0.05
    return count / studies


@pytest.mark.parametrize('k', [3, 5])
@pytest.mark.parametrize(('second', 'images_sd'), [(1, 0), (1, 1), (4.5**0.5, 0.7)])
def test_the_crossed_interval_keeps_its_level(second, images_sd, k):
    assert alarms(second, images_sd, k) < 0.075


def test_equal_is_found_by_two_one_sided_tests():
    x = np.random.default_rng(0).normal(0.1, 0.03, 5)
    for margin in (0.08, 0.11, 0.15):
        one_sided = max(
            stats.ttest_1samp(x, margin, alternative='less').pvalue,
            stats.ttest_1samp(x, -margin, alternative='greater').pvalue,
        )
        assert estimate(x).within(margin) == (one_sided < 0.05)


def test_one_more_pair_of_runs_ends_in_the_prediction_interval():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (3000, 6))
    ends = [estimate(x[:5]).prediction() for x in draws]
    inside = [low < x[5] < high for x, (low, high) in zip(draws, ends, strict=True)]
    assert 0.935 < np.mean(inside) < 0.965


def test_the_probability_of_a_better_run_is_that_of_mann_and_whitney():
    a, b = [1, 3, 3, 5], [2, 3, 4]
    assert prob_better(a, b) == stats.mannwhitneyu(a, b).statistic / 12
    assert prob_better([1, math.nan], [0]) == 1 and math.isnan(prob_better([], [1]))


# Planning


def test_the_ends_of_seeds_needed():
    assert seeds_needed(1.0, 1.0) == 10  # the textbook value of the paired t test
    assert seeds_needed(1e6, 1.0) == 2
    assert {seeds_needed(effect, 1.0) for effect in (0, 1e-9, math.nan)} == {None}
    assert seeds_needed(0.1, 0.1, image_sd=0.2) is None  # the images are too few
    assert seeds_needed(0.5, 1.0, max_seeds=10) is None


def test_holm_keeps_false_claims_rare():
    rng, alarms, plain = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values = rng.standard_normal((5, 5))  # five variants, five seeds, no difference
        p = [estimate(values[i] - values[j]).p for i in range(5) for j in range(i)]
        plain += min(p) < 0.05
        alarms += min(holm(p)) < 0.05
    assert alarms / 400 < 0.08 < 0.15 < plain / 400


def test_pairs_effects_and_slopes():
    assert len(default_pairs('abcd')) == 6 and default_pairs('abcde')[-1] == ('a', 'e')
    effect = main_effect(['bn', 'bn+l1', 'bn+l2', 'bn+l1+l2'], 'l1')
    assert effect.weights == {'bn': -0.5, 'bn+l1': 0.5, 'bn+l2': -0.5, 'bn+l1+l2': 0.5}
    with pytest.raises(ValueError, match="'l3'"):
        main_effect(['bn', 'bn+l1'], 'l3')
    line = {'a1': 0.0, 'a2': 1.0, 'a3': 3.0}
    slope = slope_difference(line, {'b1': 0.0, 'b2': 2.0}, ('a', 'b'), 'step')
    y = {'a1': 5, 'a2': 6, 'a3': 11, 'b1': 1, 'b2': 2}
    fitted = stats.linregress([0, 1, 3], [5, 6, 11]).slope - 0.5
    assert sum(w * y[v] for v, w in slope.weights.items()) == pytest.approx(fitted)
    values = pd.DataFrame({v: [x, x + 0.1, x + 0.3] for v, x in y.items()})
    (c,) = compare_runs(values, RUN_METRICS['test_acc'], pairs=[slope])
    assert c.effect.mean == pytest.approx(fitted) and 'per step' in c.sentence


def test_shares_of_failed_runs():
    low, high = share_interval(2, 5)
    assert stats.binom.sf(1, 5, low) == pytest.approx(0.025)
    assert stats.binom.cdf(2, 5, high) == pytest.approx(0.025)
    assert fisher((3, 3), (0, 3)) == pytest.approx(0.1)


# Verdicts


def compared(*values, **more):
    about = RUN_METRICS['test_acc']
    by_seed = dict(enumerate(values))
    return Comparison('a', 'b', 'test_acc', about, by_seed, estimate(values), **more)


def test_seeds_that_agree_exactly_prove_nothing():
    c = compared(0.1, 0.1, 0.1, margin=0.5)
    assert c.verdict == 'open' and c.more_seeds is None and '3 seeds' in c.sentence
    same = estimate([0.0] * 3, np.zeros((3, 50)))  # on every image, too
    assert same.p == 1.0 and same.low == same.high == 0.0


def test_what_closes_an_open_question():
    c = compared(0.2, -0.1, 0.15, 0.0, 0.1, margin=0.1)
    fewest, more, most = c.seeds_to_close
    assert c.verdict == 'open' and fewest <= more <= most and str(more) in c.sentence
    rng = np.random.default_rng(0)
    images = 100.0 * rng.choice([-1, 0, 1], 50) * np.ones((4, 1))  # the seeds agree
    stuck = replace(compared(*images.mean(1)), effect=estimate(images.mean(1), images))
    assert stuck.verdict == 'open' and stuck.more_seeds is None
    assert '50 test images are too few' in stuck.sentence


TABLE = """variant,seed,loss
x net,0,0.31
x net,1,0.33
x net,2,0.32
gn:4,0,0.41
gn:4,1,0.40
gn:4,2,0.44
"""


def csv(tmp_path, text):
    path = tmp_path / 'runs.csv'
    path.write_text(text, encoding='utf-8')
    return read_runs(path)


def test_a_table_of_any_names(tmp_path):
    (c,) = compare_table(csv(tmp_path, TABLE), lower_is_better=True, margin=0.05)
    found = c.to_dict()
    test = stats.ttest_rel([0.31, 0.33, 0.32], [0.41, 0.40, 0.44]).confidence_interval()
    assert [found['low'], found['high']] == pytest.approx(list(test))
    assert found['verdict'] == 'ahead' and found['seeds'] == 3 and found['more_seeds'] is None
    assert compare_table(csv(tmp_path, TABLE))[0].verdict == 'behind'
    assert compare_table(csv(tmp_path, TABLE), pairs='gn:4:x net')[0].verdict == 'ahead'


def test_a_table_of_images_is_a_table_of_accuracies_and_more(tmp_path):
    rng = np.random.default_rng(0)
    right = rng.random((2, 3, 40)) < [[[0.9]], [[0.6]]]
    rows = [
        f'{v},{s},{i},{int(right[n, s, i])}'
        for n, v in enumerate('ab')
        for s in range(3)
        for i in rng.permutation(40)
    ]
    (c,) = compare_table(csv(tmp_path, '\n'.join(['variant,seed,image,correct', *rows])))
    d = 100.0 * right[0] - 100.0 * right[1]
    e = estimate(d.mean(1), d)
    assert (c.effect.low, c.effect.high) == pytest.approx((e.low, e.high))
    assert c.effect.images == 40


def test_a_history_counts_by_its_last_epoch_and_an_empty_cell_is_a_lost_run():
    rows = [
        (v, s, e, a + e + s / 10 if (v, s, e) != ('b', 2, 2) else math.nan, 1.0)
        for v, a in (('a', 90), ('b', 80))
        for s in range(3)
        for e in (2, 1)
    ]
    table = pd.DataFrame(rows, columns=['variant', 'seed', 'epoch', 'test_acc', 'test_loss'])
    (c,) = compare_table(table)
    assert c.differences == {0: 10, 1: 10} and (c.lost_a, c.lost_b) == (0, 1)
    (c,) = compare_table(table, 'test_acc_change')
    assert c.differences[0] == 0


BAD = {
    'no variant': (TABLE.replace('variant', 'model'), {}, "'variant'"),
    'no seed': (TABLE.replace('seed', 'run'), {}, "'seed'"),
    'no metric': (TABLE.replace(',loss', ''), {}, 'metric'),
    'two metrics': (TABLE.replace(',0.', ',1,0.').replace('loss', 'x,y'), {}, "'x' or 'y'"),
    'another metric': (TABLE, {'metric': 'acc'}, "'acc'"),
    'no rows': (TABLE.splitlines()[0], {}, 'no rows'),
    'a word': (TABLE.replace('0.33', 'good'), {}, "line 3: loss 'good'"),
    'one seed': (TABLE + 'y,0,0.5\n', {}, "'y'"),
    'one variant': (TABLE.replace('gn:4', 'x net').replace(',0,', ',7,'), {}, 'line'),
    'twice': (TABLE + 'gn:4,2,0.5\n', {}, 'line 8'),
    'no name': (TABLE.replace('gn:4,1', ',1'), {}, 'line 6'),
    'a margin of zero': (TABLE, {'margin': 0.0}, '0.0'),
    'another pair': (TABLE, {'pairs': [('x net', 'y')]}, "'y'"),
}


@pytest.mark.parametrize(('text', 'options', 'named'), BAD.values(), ids=list(BAD))
def test_a_table_that_cannot_be_compared_is_refused_in_one_line(tmp_path, text, options, named):
    with pytest.raises(ValueError) as caught:
        compare_table(csv(tmp_path, text), **options)
    assert named in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('rows', 'named'),
    [
        ('a,0,0,1\na,1,0,1\nb,0,0,2\nb,1,0,0', 'line 4'),
        ('a,0,0,1\na,1,0,1\nb,0,0,1\nb,1,1,0', 'lacks 1 of the images'),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path, rows, named):
    with pytest.raises(ValueError, match=named):
        compare_table(csv(tmp_path, 'variant,seed,image,correct\n' + rows))


def test_a_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / 'empty.csv').write_bytes(b'')
    (tmp_path / 'binary.csv').write_bytes(bytes(range(256)))
    (tmp_path / 'ragged.csv').write_text(TABLE + 'y,0,1,2,3\n', encoding='utf-8')
    for name in ('none.csv', '', 'empty.csv', 'binary.csv', 'ragged.csv'):
        path = tmp_path / name
        with pytest.raises(ValueError, match=path.name):
            read_runs(path)
    for text in ('a', 'a:b:c', 'a:a', 'a:b,'):
        with pytest.raises(ValueError, match='pair'):
            read_pairs(text, ['a', 'b'])


# Results and claims


def results_of(accuracies, diverged=(), images=1000, name='fake'):
    """Results in which a variant gets the first `accuracy` % of the images right."""
    study = Study(name, variants=tuple(accuracies), seeds=len(next(iter(accuracies.values()))))
    rows, evaluations, labels = [], {}, torch.arange(images) % 10
    for run in study.run_keys():
        accuracy = math.nan if run in diverged else accuracies[run[0]][run[1]]
        numbers = dict.fromkeys(('train_loss', 'test_loss', 'train_acc', 'test_acc'), accuracy)
        rows.append({'variant': run[0], 'seed': run[1], 'epoch': 1, **numbers})
        if run not in diverged:
            right, ones = torch.arange(images) < round(accuracy * images / 100), torch.ones(images)
            evaluations[run] = Evaluation(
                torch.where(right, labels, 9 - labels), ones, ones, labels
            )
    return Results(study, pd.DataFrame(rows), evaluations)


def judged(results, left, sign, right, metric='test_acc', **more):
    test = ClaimTest.order('fake', left, sign, right, metric)
    return Claim('', '', test, **more).check(results)


def test_results_compare_like_a_table():
    r = results_of({'bn': [99, 98.8, 99.1], 'ln': [98, 98.2, 97.7], 'gn': [98.1, 97.9, 97.7]})
    found = r.comparisons()
    assert [c.margin for c in found] == [1.0] * 3 and found[0].effect.images == 1000
    table = r.values().stack().rename('test_acc').rename_axis(['seed', 'variant']).reset_index()
    again = compare_table(table, margin=1.0, correct=r.correct)
    order = {frozenset((c.a, c.b)): abs(c.effect.mean) for c in again}
    assert order == {frozenset((c.a, c.b)): abs(c.effect.mean) for c in found}
    assert all(c.p_holm >= c.effect.p and c.planned == 3 for c in found)
    assert r.compare('bn', 'ln', 'train_acc').margin is None


def test_penalties_of_one_norm_share_their_spread_and_norms_do_not():
    rng = np.random.default_rng(0)
    values = {v: 90 + rng.normal(0, 1, 4).round(1) for v in ('bn', 'bn+l1', 'bn+l2')}
    pooled = results_of(values, images=20_000).compare('bn', 'bn+l1').effect
    assert pooled.seed_df >= 6
    values = dict(zip(('bn', 'ln', 'gn'), values.values(), strict=True))
    assert results_of(values, images=20_000).compare('bn', 'ln').effect.seed_df >= 3
    alone = results_of(values, images=20_000).compare('bn', 'ln').effect
    assert alone.seed_variance != pooled.seed_variance


def test_failures_are_counted():
    r = results_of({'bn': [99, 98, 97], 'ln': [9.8, 99, 99]}, diverged=[('ln', 2)])
    found = failures(r).set_index('variant')
    assert found.loc['ln', ['diverged', 'collapsed', 'failed']].tolist() == [1, 1, 2]
    assert found.loc['bn', 'failed'] == 0
    assert tuple(found.loc['ln', ['low', 'high']]) == share_interval(2, 3)


def test_verdicts_on_claims():
    l1, gn, ln, none = [99, 98, 99.5], [96, 95, 96.5], [95, 95, 98], [9.5, 9.6, 9.55]
    r = results_of({'bn+l1': l1, 'gn': gn, 'ln': ln, 'none': none}, images=10_000)
    assert judged(r, ('bn+l1',), '>', ('gn', 'none')).verdict == 'holds'
    assert judged(r, ('gn',), '>', ('bn+l1', 'ln')).verdict == 'does not hold'
    assert judged(r, ('gn',), '>', ('ln',)).verdict == 'open'
    assert judged(r, ('none', 'gn'), '<', (10,)).verdict == 'does not hold'
    assert judged(r, ('none',), '<', (12.0,)).verdict == 'holds'
    assert judged(r, ('bn+l1',), '>', ('bn',)).verdict == 'not tested yet'
    same = results_of({'bn': [99, 98, 99.5], 'gn': [99, 98.1, 99.5]}, images=10_000)
    assert judged(same, ('bn',), '>', ('gn',)).verdict == 'equal'
    found = judged(same, ('bn',), '>', ('gn',), margin=0.01, published=(3.0,))
    assert found.verdict == 'smaller'
    near = judged(same, ('bn',), '>', ('gn',), margin=0.01, published=(0.01,))
    assert near.verdict == 'open' and near.comparisons[0].margin == 0.01
    with pytest.raises(ValueError, match='2 published'):
        judged(same, ('bn',), '>', ('gn',), published=(1.0, 2.0))


def test_a_claim_is_judged_by_any_table():
    table = pd.DataFrame(
        {'variant': list('aaabbb'), 'seed': [0, 1, 2] * 2, 'test_acc': [9, 8, 9.5, 5, 4, 5]}
    )
    claim = Claim('', '', ClaimTest.order('original', ('a',), '>', ('b',)))
    assert claim.judge(compare_table(table, pairs=claim.test.contrasts)).verdict == 'holds'


def test_a_variant_that_diverged_is_not_found_to_be_better():
    two = {'bn': [99, 99.1, 99], 'ln': [90, 90.2, 90.1]}
    bn_lost, ln_lost = (results_of(two, diverged=[(v, 2)]) for v in two)
    for left, sign, right, wanted in (
        (('bn',), '>', ('ln',), ('open', 'holds')),
        (('ln',), '>', ('bn',), ('open', 'does not hold')),
        (('bn',), '<', (120,), ('holds', 'holds')),
    ):
        found = [judged(r, left, sign, right).verdict for r in (bn_lost, ln_lost)]
        assert tuple(found) == wanted
    assert judged(bn_lost, ('bn',), '>', ('ln',), 'test_loss').verdict == 'holds'  # the worse


@pytest.mark.parametrize(
    'claim', [c for c in CLAIMS if c.study in STUDIES], ids=lambda c: f'{c.study}: {c.says}'
)
def test_the_study_of_a_claim_can_decide_it(claim):
    test, study = claim.test, STUDIES[claim.study]
    assert set(test.variants) <= set(study.variants)
    if test.metric != 'test_acc':
        return
    bound = next((c.minus for c in test.contrasts if c.minus), 50)
    for shift, wanted in ((8, 'holds'), (-8, 'does not hold')):
        higher = shift if test.sign == '>' else -shift
        up = {v for c in test.contrasts for v, w in c.weights.items() if w > 0}
        values = {v: [bound + higher * (v in up)] * 3 for v in study.variants}
        if not any(c.per for c in test.contrasts):
            assert claim.check(results_of(values)).verdict == wanted


def test_a_claim_is_not_judged_by_another_study_of_the_same_name():
    results = results_of({v: [75, 75.5, 75] for v in ('bn+l2', 'ln+l2', 'gn+l2')})
    claim = next(c for c in CLAIMS if c.study == 'cifar10-norms')
    results.study = STUDIES['cifar10-norms']
    assert check_claim(claim, results).verdict == 'holds'
    results.study = results.study.replace(epochs=1)
    assert 'epochs' in check_claim(claim, results).why


def test_a_number_is_a_contrast_too():
    r = results_of({'gn': [98, 97, 98.5]})
    (c,) = r.comparisons(pairs=[Contrast.number('gn', 97.5)])
    assert c.differences == {0: 0.5, 1: -0.5, 2: 1.0} and c.b == '97.5'
