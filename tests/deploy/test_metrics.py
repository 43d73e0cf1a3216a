import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.evaluate import compare, evaluate, score_of
from deploy.goals import metrics_of, top_k
from deploy.intervals import mann_whitney
from deploy.metrics import auc_influences, evaluate_all, roc_curve
from deploy.record import Confusion, Goal, Interval, Roc, Scatter

RNG = np.random.default_rng(5)


def classes(count, samples=400):
    y = RNG.integers(0, count, samples)
    answers = RNG.normal(0, 1, (samples, count))
    answers[np.arange(samples), y] += 1
    return (8 * answers).round() / 8, y  # rounded: equal scores are among them


def labels(samples=300, count=4):
    y = (RNG.random((samples, count)) < (0.5, 0.3, 0.1, 0.02)).astype(np.int64)
    return np.clip(0.4 * y + 0.6 * RNG.random(y.shape), 0, 1).round(2), y


def values(samples=200):
    y = RNG.normal((100, -3), (20, 0.5), (samples, 2)).astype(np.float32)
    return y + RNG.normal(0, (10, 0.2), y.shape), y


def by_scikit_learn(name, goal, answers, y):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    if goal.task == "regression":
        function = {"mae": "mean_absolute_error", "mse": "mean_squared_error", "r2": "r2_score"}
        return getattr(sklearn, function[name])(y, answers)
    multi_label = goal.task == "multi_label"
    if name == "roc_auc":
        scores = (
            answers
            if multi_label
            else answers[:, -1] - (answers[:, 0] if answers.shape[1] > 1 else 0)
        )
        return sklearn.roc_auc_score(y, scores, average="macro")
    predicted = (answers >= 0.5).astype(int) if multi_label else answers.argmax(axis=1)
    if name == "accuracy":
        return sklearn.accuracy_score(y, predicted)
    if k := top_k(name):
        return sklearn.top_k_accuracy_score(y, answers, k=k, labels=np.arange(answers.shape[1]))
    kind, _, average = name.partition("_")
    function = getattr(sklearn, f"{kind}_score")
    return function(y, predicted, average=average or "binary", zero_division=0)


@pytest.mark.parametrize(
    ("task", "made"),
    [
        ("classification", classes(2)),
        ("classification", classes(7)),
        ("multi_label", labels()),
        ("regression", values()),
        ("reconstruction", (RNG.random((90, 1)).round(1), np.arange(90) % 2)),
    ],
    ids=["two classes", "seven classes", "labels", "values", "anomalies"],
)
def test_every_metric_is_the_number_that_scikit_learn_gives(task, made):
    answers, y = made
    names = metrics_of(task, answers.shape[1])
    goal = Goal(task=task, metric=names[0])
    found = evaluate_all(goal, answers, y)
    assert list(found) == names
    if task == "classification":  # its top-k breaks ties in another order
        answers = answers - 2.0**-20 * np.arange(answers.shape[1])
    for name, interval in found.items():
        assert interval.value == pytest.approx(by_scikit_learn(name, goal, answers, y)), name
        assert interval.low <= interval.value <= interval.high, name
        assert interval.low < interval.high, name
        of_metric = Goal(task=task, metric=name)
        assert score_of(made[0], y, of_metric) == pytest.approx(interval.value), name


def test_a_class_that_neither_is_there_nor_was_named_is_no_part_of_a_mean():
    answers, y = np.eye(5)[[0, 1, 1, 0]], np.array([0, 1, 0, 0])
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    goal = Goal(metric="f1_macro")
    expected = sklearn.f1_score(y, answers.argmax(axis=1), average="macro")
    assert evaluate(answers, y, goal).score.value == pytest.approx(expected)


def test_the_roc_curve_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    scores, y = RNG.random(80).round(1), np.arange(80) % 2
    expected = sklearn.roc_curve(y, scores, drop_intermediate=False)[:2]
    for mine, other in zip(roc_curve(y, scores), expected, strict=True):
        assert mine == pytest.approx(other)


@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_the_influences_add_up_to_delongs_variance(positive, negative, seed):
    rng = np.random.default_rng(seed)
    y = np.repeat([1, 0], [positive, negative])
    scores = rng.integers(0, 12, len(y)) + y
    area, influence = auc_influences(y[:, None], scores[:, None])
    kernel = np.subtract.outer(scores[y == 1], scores[y == 0])
    wins = (kernel > 0) + 0.5 * (kernel == 0)
    parts = (wins.mean(axis=axis).var(ddof=1) / n for axis, n in ((1, positive), (0, negative)))
    assert area == pytest.approx(wins.mean())
    assert np.square(influence).sum() == pytest.approx(sum(parts), abs=1e-12)


def covered(truth, intervals):
    return np.mean([i.low <= truth <= i.high for i in intervals])


def test_the_interval_of_an_area_holds_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(1)
    y = np.repeat([1, 0], [40, 60])[:, None]
    truth = 0.9213503964748574  # Φ(2 / √2)
    intervals = []
    for _ in range(600):
        area, _ = auc_influences(y, rng.normal(2.0 * y, 1))
        intervals.append(mann_whitney(area, 40, 60))
    assert covered(truth, intervals) >= 0.93


@pytest.mark.parametrize("metric", ["f1_macro", "f1"])
def test_the_bootstrap_interval_of_a_difference_holds_the_truth_about_95_times_in_100(metric):
    rng = np.random.default_rng(2)
    goal = Goal(metric=metric)

    def draw(samples):
        y = (rng.random(samples) < 0.3).astype(np.int64)
        one = np.where(rng.random(samples) < 0.9, y, 1 - y)
        other = np.where(rng.random(samples) < 0.95, one, 1 - one)
        return np.eye(2)[one], np.eye(2)[other], y

    truth = compare(*draw(400_000), goal).delta.value
    intervals = [compare(*draw(200), goal).delta for _ in range(120)]
    assert covered(truth, intervals) >= 0.90  # of 120 trials at 95 %, 2.5 standard errors below


def test_two_equal_classifiers_are_not_known_to_be_equal_by_any_metric():
    answers, y = classes(3, 60)
    for metric in ("f1_macro", "recall_weighted"):
        delta = compare(answers, answers, y, Goal(metric=metric)).delta
        assert delta.value == 0
        assert delta.low < 0 < delta.high
    answers, y = labels(60)
    delta = compare(answers, answers, y, Goal(task="multi_label", metric="f1_macro")).delta
    assert delta.low < 0 < delta.high


def test_a_difference_is_paired_and_so_narrower_than_that_of_two_sets():
    answers, y = values()
    goal = Goal(task="regression", metric="mae")
    slightly = compare(answers + 0.1, answers, y, goal)
    alone = evaluate(answers, y, goal).score
    assert slightly.delta.high - slightly.delta.low < 0.1 * (alone.high - alone.low)
    assert (slightly.mcnemar_p, slightly.agreement) == (None, None)


def test_equal_samples_give_equal_intervals():
    answers, y = classes(4)
    goal = Goal(metric="f1_macro")
    assert evaluate(answers, y, goal) == evaluate(answers, y, goal)


def test_what_a_report_draws_is_kept_with_the_numbers():
    answers, y = np.eye(2)[[0, 1, 1]], np.array([0, 0, 1])
    assert evaluate(answers, y).answers == Confusion(counts=((1, 1), (0, 1)))
    two = np.float64([[1.5], [2.5]])
    drawn = evaluate(two, np.float32([[1], [2]]), Goal(task="regression", metric="mae"))
    assert drawn.answers == Scatter(true=((1.0, 2.0),), predicted=((1.5, 2.5),))
    assert drawn.per_label == (0.5,)
    scores, anomalies = np.array([[0.1], [0.9]]), np.array([0, 1])
    curve = evaluate(scores, anomalies, Goal(task="reconstruction", metric="roc_auc"))
    assert curve.answers == Roc(false_positive_rate=(0, 0, 1), true_positive_rate=(0, 1, 1))
    assert curve.score.low < 1 == curve.score.high


def test_of_many_samples_no_more_than_a_page_can_hold_is_kept():
    y = np.arange(500, dtype=np.float32)[:, None]
    kept = evaluate(y, y, Goal(task="regression", metric="r2")).answers
    assert len(kept.true[0]) == 200
    many = np.eye(60)
    assert evaluate(many, np.arange(60)).answers is None


def test_targets_that_are_all_alike_are_explained_only_if_they_are_met():
    y = np.ones((5, 1), np.float32)
    goal = Goal(task="regression", metric="r2")
    assert evaluate(y, y, goal).score.value == 1
    assert evaluate(y + 1, y, goal).score == Interval(value=0.0, low=0.0, high=0.0)
