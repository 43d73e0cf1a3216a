import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.errors import UserError
from deploy.evaluate import answers_of, compare, evaluate, predict_classes, verdict
from deploy.intervals import mcnemar_p, paired_difference, wilson
from deploy.record import Comparison, Goal, Interval
from deploy.session import ModelMetadata, open_model
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


def test_minus_infinity_for_every_class_is_no_answer():
    model = open_model(tiny_onnx.linear(np.ones((1, 2)), bias=[-np.inf, -np.inf]))
    with pytest.raises(UserError, match=r"must be numbers, got -inf for 1 of 1 samples"):
        predict_classes(model, np.float32([[1]]))


def test_what_is_no_number_is_named_though_a_number_stands_beside_it():
    model = open_model(tiny_onnx.linear(np.ones((1, 2)), bias=[-np.inf, 7]))
    with pytest.raises(UserError, match=r"must be numbers, got -inf for 1 of 1 samples"):
        answers_of(model, np.float32([[1]]), Goal(task="regression", metric="mae"))


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


def scores(classes, count):
    """Answers whose highest score is at these classes."""
    return np.eye(count)[classes]


def test_accuracy_and_recall_are_the_shares_counted_by_hand():
    evaluation = evaluate(scores([0, 0, 1, 1, 0], 3), np.array([0, 0, 0, 1, 1]))
    assert evaluation.samples == 5
    assert evaluation.score.value == pytest.approx(0.6)
    assert evaluation.per_label == pytest.approx((2 / 3, 1 / 2, 0))


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
    comparison = compare(scores(candidate, 3), scores(reference, 3), y)
    assert comparison.delta.value == pytest.approx(-20)
    assert comparison.agreement == pytest.approx(0.5)
    assert comparison.per_label_delta == pytest.approx((-20, 0, 0))
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
    answers = scores(predicted, 4)
    comparison = compare(answers, answers, y)
    assert comparison.agreement == 1
    assert comparison.mcnemar_p == 1
    assert comparison.delta.low < 0 < comparison.delta.high
    assert verdict(comparison).startswith("no detectable difference: 0.00 points [−")


def test_a_real_loss_is_called_one():
    y = np.zeros(1000, np.int64)
    worse = (np.arange(1000) < 50).astype(np.int64)
    bad, good = scores(worse, 2), scores(y, 2)
    assert verdict(compare(bad, good, y)).startswith("less accurate: −5.00 points")
    assert verdict(compare(good, bad, y)).startswith("more accurate: +5.00 points")


def test_a_difference_needs_both_the_interval_and_the_exact_test():
    def comparison(low, p):
        delta = Interval(value=0.5, low=low, high=1.0)
        return Comparison(delta=delta, mcnemar_p=p, agreement=0.9, per_label_delta=(0.5, 0.5))

    assert verdict(comparison(0.1, 0.04)).startswith("more accurate")
    assert verdict(comparison(-0.1, 0.04)).startswith("no detectable difference")
    assert verdict(comparison(0.1, 0.06)).startswith("no detectable difference")


TWO = np.array([0, 1])


@pytest.mark.parametrize(
    ("answers", "y", "message"),
    [
        (scores([0], 2), TWO, "answers: needs one row of answers and one class a sample"),
        (scores([], 2), TWO[:0], "one sample or more"),
        (scores(TWO, 2), TWO[:, None], "one class a sample"),
        (scores(TWO, 2), np.array([0, 2]), "y: classes must lie from 0 to 1, got 0 to 2"),
        (scores(TWO, 2), np.array([-1, 0]), "y: classes must lie from 0 to 1, got -1 to 0"),
    ],
)
def test_answers_and_classes_that_do_not_pair_or_do_not_exist_are_refused(answers, y, message):
    with pytest.raises(UserError, match=re.escape(message)):
        evaluate(np.asarray(answers), y)


@pytest.mark.parametrize("bad", ["candidate", "reference"])
def test_a_comparison_names_the_side_that_does_not_fit(bad):
    sides = {"candidate": scores(TWO, 2), "reference": scores(TWO, 2), bad: scores([0], 2)}
    with pytest.raises(UserError, match=f"{bad}: needs one row of answers"):
        compare(**sides, y=TWO)


def test_a_metric_that_does_not_fit_the_task_is_refused_with_those_that_do():
    with pytest.raises(UserError, match="'mae' does not fit a classification task; there are acc"):
        evaluate(scores(TWO, 2), TWO, Goal(metric="mae"))
    with pytest.raises(UserError, match="'f1' is for two classes, there are 3; take f1_macro"):
        evaluate(scores(TWO, 3), TWO, Goal(metric="f1"))
    with pytest.raises(UserError, match="ROC-AUC needs samples of both kinds"):
        evaluate(np.ones((2, 1)), TWO * 0, Goal(task="reconstruction", metric="roc_auc"))


def test_a_smaller_error_is_called_better_and_written_in_its_unit():
    y = np.linspace(0, 100, 200)[:, None]
    rough, fine = y + 4, y + 1
    goal = Goal(task="regression", metric="mae", unit="mm")
    assert verdict(compare(fine, rough, y, goal), goal).startswith(
        "better mean absolute error: −3.00\u202fmm"
    )
    assert verdict(compare(rough, fine, y, goal), goal).startswith("worse mean absolute error: +3")


def test_a_model_that_says_nothing_of_its_task_is_a_classifier_and_another_is_asked_for_its_own():
    goal = Goal(task="reconstruction", metric="roc_auc")
    about = ModelMetadata(goal=goal).to_props()
    model = open_model(tiny_onnx.linear(np.diag([1.0, 0.5]), metadata=about))
    samples = np.float32([[1, 2], [0, 4]])
    assert answers_of(model, samples).tolist() == [[0.5], [2.0]]  # (0² + 1²) / 2 and (0² + 2²) / 2
    assert answers_of(model, samples, Goal()).tolist() == [[1, 1], [0, 2]]


def test_a_reconstruction_of_another_shape_than_its_sample_is_refused():
    model = open_model(tiny_onnx.linear(np.ones((3, 2))))
    with pytest.raises(UserError, match=r"must have its sample's shape \(3,\), got \(2,\)"):
        answers_of(
            model, np.zeros((1, 3), np.float32), Goal(task="reconstruction", metric="roc_auc")
        )
