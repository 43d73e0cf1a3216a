import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import UserError
from deploy.evaluate import compare, evaluate, predict_classes, verdict
from deploy.intervals import mcnemar_p, paired_difference, wilson
from deploy.record import Comparison, Interval
from deploy.session import open_model
from tests.deploy import tiny_onnx

COUNTS = st.tuples(*(st.integers(0, 60),) * 3)


def test_the_class_of_the_highest_score_is_predicted_and_ties_go_to_the_lowest():
    model = open_model(tiny_onnx.linear(np.eye(3)))
    samples = np.float32([[0, 2, 1], [1, 0, 1], [0, 0, 5]])
    predicted = predict_classes(model, samples)
    assert predicted.tolist() == [1, 0, 2]
    assert predicted.dtype == np.int64


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_no_number_names_the_first_sample_it_was_seen_at(bad):
    model = open_model(tiny_onnx.linear(np.ones((1, 2))))
    samples = np.float32([[1], [2], [bad], [4], [bad]])
    with pytest.raises(UserError, match=r"model: .*2 of 5 samples, the first of them sample 2;"):
        predict_classes(model, samples)


def test_a_score_of_minus_infinity_is_the_logarithm_of_zero_and_passes():
    model = open_model(tiny_onnx.linear(np.ones((1, 2)), bias=[-np.inf, 0]))
    assert predict_classes(model, np.float32([[1]])).tolist() == [1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 2, 2)])
def test_an_output_that_is_not_one_score_per_class_is_refused(shape):
    flat = tiny_onnx.model(
        [("Reshape", ["x", "shape"], ["scores"])],
        inputs={"x": ("float32", ("batch", math.prod(shape)))},
        outputs={"scores": ("float32", shape)},
        initializers={"shape": np.int64(shape)},
    )
    samples = np.zeros((1, math.prod(shape)), np.float32)
    with pytest.raises(UserError, match=r"needs an output of \(n, classes\).*got \(1, "):
        predict_classes(open_model(flat), samples)


def test_accuracy_and_recall_are_the_shares_counted_by_hand():
    evaluation = evaluate(np.array([0, 0, 1, 1, 0]), np.array([0, 0, 0, 1, 1]), classes=3)
    assert evaluation.samples == 5
    assert evaluation.accuracy.value == pytest.approx(0.6)
    assert evaluation.recall == pytest.approx((2 / 3, 1 / 2, 0))


def test_the_wilson_interval_is_that_of_the_literature():
    # Newcombe (1998), Stat. Med. 17:857-872, table I, method 3.
    expected = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611)}
    for (successes, trials), bounds in expected.items():
        interval = wilson(successes, trials)
        assert (interval.low, interval.high) == pytest.approx(bounds, abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_holds_its_estimate_and_stays_a_share(counts):
    interval = wilson(*counts)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


def test_a_comparison_is_the_table_of_pairs_counted_by_hand():
    y = np.zeros(10, np.int64)
    reference = np.array([0] * 8 + [1, 1])
    candidate = np.array([1, 1, 1] + [0] * 5 + [0, 2])  # loses 3, gains 1, errs twice differently
    comparison = compare(candidate, reference, y, classes=3)
    assert comparison.delta_points.value == pytest.approx(-20)
    assert comparison.agreement == pytest.approx(0.5)
    assert comparison.recall_delta_points == pytest.approx((-20, 0, 0))
    assert comparison.mcnemar_p == pytest.approx(10 / 16)  # 2 (C(4,0) + C(4,1)) / 2⁴


@given(COUNTS)
def test_swapping_the_models_swaps_the_sign_of_the_difference(counts):
    gained, lost, same = counts
    trials = gained + lost + same + 1
    there, back = (paired_difference(*pair, trials) for pair in ((gained, lost), (lost, gained)))
    assert there.value == -back.value
    assert there.low == pytest.approx(-back.high)
    assert mcnemar_p(gained, lost) == mcnemar_p(lost, gained)
    assert -1 <= there.low <= there.value <= there.high <= 1


def test_mcnemar_p_stays_a_number_for_as_many_pairs_as_a_test_set_may_have():
    assert mcnemar_p(5000, 5000) == 1
    assert mcnemar_p(0, 3000) == 0
    # 15,180 of 30,000 lies 2.08 standard deviations from the middle.
    assert mcnemar_p(14_820, 15_180) == pytest.approx(math.erfc(359 / math.sqrt(60_000)), rel=1e-2)


@pytest.mark.parametrize(("gain", "loss"), [(0.004, 0.004), (0.002, 0.012), (0.03, 0.01)])
@pytest.mark.parametrize("samples", [200, 2000])
def test_the_interval_of_the_difference_holds_the_truth_95_times_in_100(gain, loss, samples):
    rng = np.random.default_rng(7)
    trials = 2000
    tables = rng.multinomial(samples, (gain, loss, 1 - gain - loss), size=trials)
    intervals = [paired_difference(int(g), int(n), samples) for g, n, _ in tables]
    covered = sum(i.low <= gain - loss <= i.high for i in intervals) / trials
    assert covered >= 0.94  # 2 standard errors of the simulation below 95 %


def test_two_equal_models_give_no_detectable_difference_yet_an_interval_with_a_width():
    y = np.arange(100) % 4
    predicted = np.where(np.arange(100) < 90, y, 0)
    comparison = compare(predicted, predicted, y, classes=4)
    assert comparison.agreement == 1
    assert comparison.mcnemar_p == 1
    assert comparison.delta_points.low < 0 < comparison.delta_points.high
    assert verdict(comparison).startswith("no detectable difference: +0.00 points [−")


def test_a_real_loss_is_called_one():
    y = np.zeros(1000, np.int64)
    worse = (np.arange(1000) < 50).astype(np.int64)
    assert verdict(compare(worse, y, y, classes=2)).startswith("less accurate: −5.00 points")
    assert verdict(compare(y, worse, y, classes=2)).startswith("more accurate: +5.00 points")


def test_a_difference_needs_both_the_interval_and_the_exact_test():
    def comparison(low, p):
        delta = Interval(value=0.5, low=low, high=1.0)
        return Comparison(
            delta_points=delta, mcnemar_p=p, agreement=0.9, recall_delta_points=(0.5, 0.5)
        )

    assert verdict(comparison(0.1, 0.04)).startswith("more accurate")
    assert verdict(comparison(-0.1, 0.04)).startswith("no detectable difference")
    assert verdict(comparison(0.1, 0.06)).startswith("no detectable difference")


ONE = np.array([0, 1])


@pytest.mark.parametrize(
    ("predicted", "y", "message"),
    [
        (np.array([0]), ONE, "predicted: needs one class a sample"),
        (ONE[:0], ONE[:0], "one sample or more"),
        (ONE[:, None], ONE[:, None], "one class a sample"),
        (np.array([0, 2]), ONE, "predicted: classes must lie from 0 to 1, got 0 to 2"),
        (ONE, np.array([-1, 0]), "y: classes must lie from 0 to 1, got -1 to 0"),
    ],
)
def test_classes_that_do_not_pair_or_do_not_exist_are_refused(predicted, y, message):
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(predicted, y, classes=2)


@pytest.mark.parametrize("bad", ["candidate", "reference"])
def test_a_comparison_names_the_side_that_does_not_fit(bad):
    sides = {"candidate": ONE, "reference": ONE, bad: np.array([0, 9])}
    with pytest.raises(UserError, match=f"{bad}: classes must lie"):
        compare(**sides, y=ONE, classes=2)
