"""Variants, and the design of a study."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from normnotes.compare.design import Study
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
    ['', 'xn', 'bn+', 'bn+l3', 'bn+l1+l1', 'bn+l1=', 'bn+l1=much', 'bn+l1=-1', 'bn+l1=inf']
    + ['bn+l1=nan', 'bn@', 'bn@lr', 'bn@lr=', 'bn@lr=1@lr=2', 'bn@augment=a/b', 'gn:0', 'gn:two']
    + ['bn:4'],
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
