"""Variants, the design of a study, its statistics, and the claims and presets of the book."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normnotes.compare.claims import Claim, Contrast, compare_with_number
from normnotes.compare.design import Study
from normnotes.compare.presets import CLAIMS, STUDIES, claims_table
from normnotes.compare.results import Results
from normnotes.compare.statistics import estimate, holm, mcnemar, seeds_needed
from normnotes.evaluation import Evaluation
from normnotes.training import TrainConfig
from normnotes.variants import Variant, variant_style

STRENGTHS = st.one_of(st.booleans(), st.floats(1e-12, 1e6).map(lambda x: float(f'{x:.9g}')))
RATES = st.floats(1e-6, 10).map(lambda x: float(f'{x:.6g}'))
SETTINGS = st.fixed_dictionaries(
    {}, optional={'lr': RATES, 'batch_size': st.integers(1, 10**6), 'nesterov': st.booleans()}
)


@given(st.sampled_from(['bn', 'ln', 'in', 'lnc', 'none']), STRENGTHS, STRENGTHS, SETTINGS)
def test_a_variant_is_printed_as_it_is_parsed(norm, l1, l2, settings):
    variant = Variant(norm, None, l1, l2, tuple(settings.items()))
    assert Variant.parse(str(variant)) == variant
    assert set(variant_style(variant)) == {'color', 'linestyle', 'marker'}


@pytest.mark.parametrize(
    'text',
    ['', 'xn', 'bn+', 'bn+l3', 'bn+l1+l1', 'bn+l1=', 'bn+l1=much', 'bn+l1=-1', 'bn+l1=inf', 'bn@']
    + ['bn@lr', 'bn@lr=', 'bn@lr=1@lr=2', 'bn@augment=a/b', 'gn:0', 'gn:two', 'bn:4'],
)
def test_what_is_not_a_variant_is_refused_and_has_a_style_all_the_same(text):
    with pytest.raises(ValueError) as caught:
        Variant.parse(text)
    assert repr(text) in str(caught.value)
    assert variant_style(text) == variant_style(text)


def test_no_two_variants_share_a_file_or_a_look():
    texts = ['gn', 'gn:4', 'gn:2', 'bn', 'bn+l1=0', 'bn+l1', 'bn+l1=1', 'bn+l2', 'bn@lr=0.1']
    slugs = [Variant.parse(text).slug for text in texts]
    assert len({slug.lower() for slug in slugs}) == len(texts)
    assert not any(set(slug) & set('<>:"/\\|?*') for slug in slugs)
    assert len({tuple(map(str, variant_style(text).values())) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ('wrong', 'named'),
    [
        ({'variant': 'bn'}, "'variants'"),
        ({'train': {'epoch': 3}}, 'epochs'),
        ({'train': {'l1': 0.1}}, 'Study(l1'),
        ({'model': 'resnet'}, "'net'"),
        ({'variants': ['bn', 'batch']}, "'bn'"),
        ({'variants': ['bn+l1', 'bn+l1=1e-4']}, "'bn+l1=1e-4'"),  # the same net
        ({'variants': ['bn@batchsize=2']}, "'batch_size'"),
        ({'variants': ['bn@seed=1']}, "'seed'"),
        ({'pairs': [['bn+l1', 'in']]}, "'in'"),
        ({'seeds': [1.5]}, '1.5'),
        ({'name': '../x'}, "'../x'"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused(wrong, named):
    with pytest.raises(ValueError) as caught:
        Study.from_dict(wrong)
    assert named in str(caught.value)


def test_the_settings_of_a_run():
    study = Study(variants='bn,bn+l1,bn+l1=3e-3+l2@batch_size=2', l1=1e-5, l2=1e-2, seeds=(3, 1))
    configs = [study.config(v, 7) for v in study.variants]
    assert [(c.l1, c.l2) for c in configs] == [(0, 0), (1e-5, 0), (3e-3, 1e-2)]
    assert [(c.batch_size, c.seed) for c in configs] == [(128, 7), (128, 7), (2, 7)]


def test_a_study_is_changed_by_the_names_of_its_settings(tmp_path):
    study = Study(variants='bn,ln,gn', pairs=[('bn', 'ln'), ('ln', 'gn')])
    assert study.replace(train=TrainConfig(epochs=7), lr=0.3).train == TrainConfig(7, lr=0.3)
    assert study.replace(variants='gn,ln').planned_pairs() == [('ln', 'gn')]
    assert Study.for_data('digits', lr=0.1).train == TrainConfig(batch_size=32, lr=0.1)
    assert Study.for_data('digits', train=TrainConfig(2)).train == TrainConfig(2)
    assert Study.for_data(tmp_path).model == Study.for_data('cifar10').model == 'cifarnet'


def test_a_study_that_was_stored_before_there_were_pairs_is_the_same():
    stored = Study().to_dict()
    del stored['pairs']
    assert Study.from_dict(stored) == Study()
    assert Study().planned_pairs() == [('bn+l1', 'ln'), ('bn+l1', 'gn'), ('ln', 'gn')]
    assert Study(variants='bn,ln,gn,in,none').planned_pairs()[-1] == ('bn', 'none')


def test_estimates_of_few_or_equal_values():
    assert math.isnan(estimate([1.0]).low) and estimate([1.0, math.nan, 3.0]).n == 2
    assert (estimate([0, 0]).p, estimate([2, 2]).p) == (1, 0)
    assert estimate([0.1, 0.1], min_sd=0.1).high == pytest.approx(0.1 + 12.706 * 0.1 / 2**0.5, 1e-3)


@pytest.mark.parametrize('effect', [0.6, 1.0])
def test_as_many_seeds_as_needed_find_a_difference_four_times_out_of_five(effect):
    n, rng = seeds_needed(effect, 1.0), np.random.default_rng(0)
    draws = {k: rng.normal(effect, 1, (2000, k)) for k in (n, n - 1)}
    found = {k: np.mean([estimate(x).p < 0.05 for x in draws[k]]) for k in draws}
    assert found[n - 1] - 0.03 < 0.8 < found[n] + 0.03


def test_the_ends_of_seeds_needed():
    assert seeds_needed(1.0, 1.0) == 10  # the textbook value of the paired t test
    assert [seeds_needed(effect, 1.0) for effect in (12, 50, 1e6)] == [2, 2, 2]
    assert {seeds_needed(effect, 1.0) for effect in (0, 1e-9, math.nan)} == {None}
    assert seeds_needed(1.65, 1.0, max_seeds=3) is None  # six would do


def test_holm_keeps_false_claims_rare():
    rng, alarms, plain = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values = rng.standard_normal((5, 5))  # five variants, five seeds, no difference
        p = [estimate(values[i] - values[j]).p for i in range(5) for j in range(i)]
        plain += min(p) < 0.05
        alarms += min(holm(p)) < 0.05
    assert alarms / 400 < 0.08 < 0.15 < plain / 400


def test_mcnemar_is_exact():
    # scores 1, 1, 1, 2 and -2, every sign tried by hand
    a, b = np.array([[1, 1, 1, 1, 0], [0, 0, 0, 1, 0]]), np.array([[0, 0, 0, 0, 1]] * 2)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1)
    p = (abs(np.array([1, 1, 1, 2, 2]) @ signs) >= 3).mean()
    assert mcnemar(a, b) == (5, 2, pytest.approx(p)) and mcnemar(a, a) == (0, 0, 1.0)


def results_of(accuracies, diverged=(), images=1000):
    """Results in which a variant gets the first `accuracy` % of the images right."""
    study = Study('fake', variants=tuple(accuracies), seeds=len(next(iter(accuracies.values()))))
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


def verdict(results, left, sign, right, metric='test_acc'):
    return Claim('', '', Contrast('fake', left, sign, right, metric)).check(results).verdict


def test_verdicts_on_made_up_results():
    l1, gn, ln, none = [99, 98, 99.5], [98, 97, 98.5], [98, 97, 99], [9.5, 9.6, 9.55]
    r = results_of({'bn+l1': l1, 'gn': gn, 'ln': ln, 'none': none})
    assert verdict(r, ('bn+l1',), '>', ('gn', 'none')) == 'holds'
    assert verdict(r, ('gn',), '>', ('bn+l1', 'ln')) == 'does not hold'
    assert verdict(r, ('gn',), '>', ('ln',)) == 'cannot be told'
    assert verdict(r, ('none', 'gn'), '<', (10,)) == 'does not hold'
    assert verdict(r, ('none',), '<', (10,)).startswith('holds on these seeds; ')  # 95 of 1,000
    assert verdict(r, ('bn+l1',), '>', ('bn',)) == 'not tested'
    number = compare_with_number(r, 'gn', 97.5)
    assert number.differences == {0: 0.5, 1: -0.5, 2: 1.0}
    assert number.p_images == pytest.approx(stats.binomtest(978, 1000, 0.975).pvalue)


def test_a_variant_that_diverged_is_not_found_to_be_better():
    two = {'bn': [99, 99.1, 99], 'ln': [98, 98.1, 98]}
    bn_lost, ln_lost = (results_of(two, diverged=[(v, 2)]) for v in two)
    for left, sign, right, wanted in (
        (('bn',), '>', ('ln',), ('cannot be told', 'holds')),
        (('ln',), '>', ('bn',), ('cannot be told', 'does not hold')),
        (('bn',), '<', (105,), ('holds', 'holds')),
    ):
        assert (verdict(bn_lost, left, sign, right), verdict(ln_lost, left, sign, right)) == wanted
    assert verdict(bn_lost, ('bn',), '>', ('ln',), 'test_loss') == 'holds'  # so bn is the worse


@pytest.mark.parametrize('claim', CLAIMS, ids=lambda claim: claim.says)
def test_the_study_of_a_claim_can_decide_it(claim):
    test, study = claim.test, STUDIES[claim.study]
    bound = next((v for v in test.right if not isinstance(v, str)), 50)
    for shift, wanted in ((3, 'holds'), (-3, 'does not hold')):
        higher = shift if test.sign == '>' else -shift
        values = {v: [bound + higher * (v in test.left)] * len(study.seeds) for v in study.variants}
        assert test.metric != 'test_acc' or claim.check(results_of(values)).verdict == wanted


def test_the_table_of_claims_leaves_out_another_study_of_the_same_name():
    results = results_of({v: [75, 75.5, 75] for v in ('bn+l2', 'ln+l2', 'gn+l2')})
    results.study = STUDIES['cifar10-norms']
    assert '| **holds** | `bn+l2, ln+l2, gn+l2 > 70` |' in claims_table(results)
    results.study = results.study.replace(epochs=1)
    assert 'not tested' in claims_table(results) and 'epochs' in claims_table(results)
