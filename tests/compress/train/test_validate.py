import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.train.fit import Fit, fit
from compress.train.validate import (
    Fold,
    HoldOut,
    KFold,
    corrected_interval,
    corrected_p,
    score,
    select,
    splits_of,
)
from deploy.errors import UserError
from tests.compress.train.test_fit import network

Y = np.repeat([0, 1, 2], [30, 20, 10])


def folds(values):
    return [Fold(value=value, kept_epoch=1, seconds=0) for value in values]


def selected(splitting=KFold(), metric="val_accuracy", **candidates):
    of = {name: folds(values) for name, values in candidates.items()}
    return select(of, metric=metric, splitting=splitting, seed=0, samples=60)


@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("repeats", [1, 3])
def test_every_sample_is_held_out_once_in_each_repeat(stratified, repeats):
    splitting = KFold(folds=5, repeats=repeats, stratified=stratified)
    splits = splits_of(Y, splitting, seed=0, where="y")
    assert len(splits) == 5 * repeats
    held_out = np.concatenate([held for _, held in splits])
    assert np.bincount(held_out).tolist() == [repeats] * 60
    for rest, held in splits:
        assert sorted([*rest, *held]) == list(range(60))


def test_stratified_folds_keep_every_class_at_its_share():
    for _, held in splits_of(Y, KFold(folds=5), seed=0, where="y"):
        assert np.bincount(Y[held]).tolist() == [6, 4, 2]


def test_a_hold_out_is_drawn_anew_in_each_repeat():
    splits = splits_of(Y, HoldOut(fraction=0.2, repeats=3), seed=0, where="y")
    assert [len(held) for _, held in splits] == [12, 12, 12]
    assert len({tuple(sorted(held)) for _, held in splits}) == 3


def test_equal_seeds_deal_equal_folds_and_others_deal_others():
    first, again, other = (
        [held.tolist() for _, held in splits_of(Y, KFold(), seed=seed, where="y")]
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("y", "splitting", "line"),
    [
        (Y, KFold(folds=11), r"11 folds are more than the 10 samples of its smallest class"),
        (
            Y[:4],
            KFold(folds=5, stratified=False),
            r"5 folds are more than the 4 samples; ask for 4",
        ),
        (Y[:31], HoldOut(), "cannot be split so"),
        (np.zeros((9, 2)), KFold(), "one class a sample"),
    ],
)
def test_folds_that_cannot_be_made_are_one_line(y, splitting, line):
    with pytest.raises(UserError, match=line) as caught:
        splits_of(y, splitting, seed=0, where="mine")
    assert str(caught.value).startswith("mine: ")
    assert "\n" not in str(caught.value)


def test_the_score_is_the_metric_over_the_whole_split_whatever_the_batches(tiny_task, monkeypatch):
    model = network()
    history = fit(model, tiny_task, Fit(epochs=2, batch_size=32), seed=0)
    monkeypatch.setattr("compress.train.validate._BATCH", 7)
    for metric in ("val_accuracy", "val_loss"):
        assert score(model, tiny_task, tiny_task.validation, metric) == pytest.approx(
            history.epochs[-1][metric], abs=1e-6
        )
    with pytest.raises(UserError, match=r"'val_f1' is not measured; there are val_loss"):
        score(model, tiny_task, tiny_task.validation, "val_f1")


def test_the_corrected_interval_is_wider_than_the_usual_one_by_the_papers_factor():
    values = np.array([0.91, 0.93, 0.92, 0.95, 0.94])
    usual = corrected_interval(values, 0.0)
    corrected = corrected_interval(values, 1 / 4)
    factor = np.sqrt((1 / 5 + 1 / 4) / (1 / 5))
    assert corrected.high - 0.93 == pytest.approx(factor * (usual.high - 0.93))


def test_the_uncorrected_test_is_students():
    from scipy.stats import ttest_1samp

    differences = np.array([0.02, 0.01, 0.03, -0.01, 0.02])
    wanted = ttest_1samp(differences, 0).pvalue
    assert corrected_p(differences, 0.0) == pytest.approx(wanted)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(0.01, 1))
def test_a_difference_and_its_opposite_are_equally_sure(differences, ratio):
    values = np.array(differences)
    p = corrected_p(values, ratio)
    assert 0 <= p <= 1
    assert p == pytest.approx(corrected_p(-values, ratio))
    assert p >= corrected_p(values, 0.0) - 1e-9


def test_the_corrected_test_keeps_its_word_where_the_usual_one_does_not():
    """Two equal candidates whose repeats share samples: 5 % of false finds, not more."""
    rng = np.random.default_rng(0)
    found = {0.0: 0, 1 / 9: 0}
    for _ in range(400):
        samples = rng.normal(size=100)
        differences = np.array(
            [part.mean() for _ in range(10) for part in np.split(rng.permutation(samples), 10)]
        )
        for ratio in found:
            found[ratio] += corrected_p(differences, ratio) < 0.05
    assert found[1 / 9] / 400 <= 0.06
    assert found[0.0] / 400 > 0.2


def test_a_clear_lead_is_better_and_a_small_one_is_noise():
    found = selected(
        good=[0.95, 0.96, 0.95, 0.97, 0.96],
        equal=[0.96, 0.95, 0.96, 0.96, 0.95],
        bad=[0.80, 0.82, 0.79, 0.83, 0.81],
    )
    assert found.winner == "good"
    assert {pair.other: pair.verdict for pair in found.paired} == {
        "equal": "noise",
        "bad": "better",
    }
    (bad,) = (pair for pair in found.paired if pair.other == "bad")
    assert bad.difference == pytest.approx(0.148)
    assert bad.interval.excludes(0)


def test_an_interval_holds_only_what_its_metric_can_be():
    (accuracy,) = selected(a=[1.0, 0.8]).candidates
    assert accuracy.interval.high == 1.0
    assert accuracy.interval.low == 0.0
    (loss,) = selected(metric="val_loss", a=[1.0, 0.2]).candidates
    assert loss.interval.high > 1.0
    assert loss.interval.low == 0.0


def test_the_winner_of_a_loss_is_the_smallest():
    assert selected(metric="val_loss", a=[0.5, 0.6], b=[0.1, 0.2]).winner == "b"


def test_of_equal_candidates_the_first_wins_and_the_lead_is_noise():
    found = selected(first=[0.9, 0.8], second=[0.9, 0.8])
    assert found.winner == "first"
    assert (found.paired[0].p, found.paired[0].verdict) == (1.0, "noise")


def test_more_comparisons_ask_for_more_proof():
    lead = [0.94, 0.95, 0.96, 0.95, 0.95]
    behind = [0.90, 0.94, 0.94, 0.92, 0.92]
    alone = selected(a=lead, b=behind).paired[0].p
    among = selected(a=lead, b=behind, c=behind, d=behind).paired[0].p
    assert alone < 0.05
    assert among == pytest.approx(min(1, 3 * alone))


def test_a_single_split_says_nothing_of_chance():
    found = selected(HoldOut(), a=[0.9], b=[0.8])
    assert found.candidates[0].interval is None
    assert (found.paired[0].p, found.paired[0].verdict) == (None, "unknown")


def test_a_difference_that_is_the_same_in_every_fold_is_as_sure_as_the_sign_test():
    values = np.array([0.5, 0.5, 0.5])
    assert corrected_p(values, 0.25) == 0.25
