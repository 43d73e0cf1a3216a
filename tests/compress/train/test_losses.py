import dataclasses
import math

import msgspec
import numpy as np
import pytest
import tensorflow as tf

from compress.data.task import Scaling, Split
from compress.train.fit import Fit, fit
from compress.train.losses import (
    BinaryCrossEntropy,
    Brier,
    CrossEntropy,
    Focal,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    higher_is_better,
    keras_loss,
    targets,
    why_not_loss,
)
from deploy.errors import UserError
from deploy.record import Goal

GOALS = {
    "multi_label": Goal(task="multi_label", metric="f1_macro"),
    "regression": Goal(task="regression", metric="mae"),
    "reconstruction": Goal(task="reconstruction", metric="roc_auc"),
}


def with_truth(task, kind, y, **changes):
    split = Split(raw=task.train.raw[: len(y)], x=task.train.x[: len(y)], y=np.asarray(y))
    return dataclasses.replace(task, goal=GOALS[kind], train=split, **changes)


def measured(loss, task, wanted, given):
    return keras_loss(loss, task)(tf.constant(wanted), tf.constant(given)).numpy().tolist()


WANTED = np.float32([[1, 0, 0], [0, 1, 0]])
GIVEN = np.float32([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]])


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (CrossEntropy(), [-math.log(0.7), -math.log(0.25)]),
        (
            CrossEntropy(label_smoothing=0.3),
            [
                -(0.8 * math.log(0.7) + 0.1 * math.log(0.2) + 0.1 * math.log(0.1)),
                -(0.1 * math.log(0.5) + 0.9 * math.log(0.25)),
            ],
        ),
        (CrossEntropy(class_weights=(2, 3, 5)), [-2 * math.log(0.7), -3 * math.log(0.25)]),
        (Focal(gamma=2), [-(0.3**2) * math.log(0.7), -(0.75**2) * math.log(0.25)]),
        (Focal(gamma=0, class_weights=(2, 3, 5)), [-2 * math.log(0.7), -3 * math.log(0.25)]),
        (Brier(), [0.09 + 0.04 + 0.01, 0.25 + 0.5625 + 0.0625]),
        (
            BinaryCrossEntropy(),
            [
                -(math.log(0.7) + math.log(0.8) + math.log(0.9)) / 3,
                -(math.log(0.5) + math.log(0.25) + math.log(0.75)) / 3,
            ],
        ),
    ],
)
def test_a_loss_of_probabilities_is_the_number_worked_out_by_hand(tiny_task, loss, by_hand):
    assert measured(loss, tiny_task, WANTED, GIVEN) == pytest.approx(by_hand, rel=1e-5)


def test_a_yes_of_a_label_counts_as_its_weight_says(tiny_task):
    task = with_truth(tiny_task, "multi_label", [[1, 0], [1, 1], [1, 0], [0, 0]], labels=("a", "b"))
    wanted, given = np.float32([[1, 1]]), np.float32([[0.5, 0.25]])
    doubled = BinaryCrossEntropy(class_weights=(1, 2))
    by_hand = [-(math.log(0.5) + 2 * math.log(0.25)) / 2]
    assert measured(doubled, task, wanted, given) == pytest.approx(by_hand)
    balanced = BinaryCrossEntropy(class_weights="balanced")  # 1 no for 3 yeses, 3 noes for 1 yes
    by_hand = [-(math.log(0.5) / 3 + 3 * math.log(0.25)) / 2]
    assert measured(balanced, task, wanted, given) == pytest.approx(by_hand)


def test_balanced_weights_let_every_class_count_alike(tiny_task):
    y = np.array([0] * 6 + [1] * 3 + [2] * 3)
    split = dataclasses.replace(tiny_task.train, y=y)
    task = dataclasses.replace(tiny_task, train=split)
    even = np.full((12, 3), 1 / 3, np.float32)
    each = measured(CrossEntropy(class_weights="balanced"), task, np.eye(3, dtype="f")[y], even)
    assert [sum(np.array(each)[y == c]) for c in range(3)] == pytest.approx([4 * math.log(3)] * 3)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (MeanSquaredError(), (4 + 9) / 2),
        (MeanAbsoluteError(), (2 + 3) / 2),
        (Huber(), (1.5 + 2.5) / 2),
        (Huber(delta=10), (2 + 4.5) / 2),
    ],
)
def test_an_error_is_measured_in_standard_deviations_of_its_target(tiny_task, loss, by_hand):
    scaling = Scaling(mean=(50.0, 0.0), std=(10.0, 0.5))
    task = with_truth(tiny_task, "regression", [[1.0, 1.0]], labels=("a", "b"), scaling=scaling)
    wanted, given = np.float32([[40, 1]]), np.float32([[60, -0.5]])
    assert measured(loss, task, wanted, given) == pytest.approx([by_hand])


def test_a_reconstruction_is_compared_with_its_sample_over_all_axes(tiny_task):
    task = dataclasses.replace(tiny_task, goal=GOALS["reconstruction"])
    x = task.train.x[:2]
    assert targets(task, x).shape == x.shape
    assert measured(MeanSquaredError(), task, x, x + np.float32(0.5)) == pytest.approx([0.25] * 2)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("classification", Huber()),
        ("multi_label", CrossEntropy()),
        ("regression", Brier()),
        ("reconstruction", Focal()),
    ],
)
def test_a_loss_that_does_not_fit_the_task_is_refused_with_those_that_do(tiny_task, kind, loss):
    task = dataclasses.replace(tiny_task, goal=GOALS.get(kind, Goal()))
    refusal = why_not_loss(loss, task)
    assert refusal.startswith("loss: ")
    assert "does not fit the" in refusal
    assert "there are" in refusal


def test_weights_for_another_number_of_classes_are_refused(tiny_task):
    refusal = why_not_loss(CrossEntropy(class_weights=(1, 2)), tiny_task)
    assert refusal == "loss.class_weights: needs one number a label, 3 for tiny, got 2"


def test_training_refuses_a_loss_of_another_task(tiny_task):
    with pytest.raises(UserError, match="loss: huber does not fit the classification task tiny"):
        fit(None, tiny_task, Fit(epochs=1, batch_size=64, loss=Huber()), seed=0)


def test_of_accuracies_more_is_better_and_of_losses_and_errors_less():
    names = ("val_accuracy", "label_accuracy", "loss", "val_mae", "mse")
    assert [higher_is_better(name) for name in names] == [True, True, False, False, False]


def test_a_loss_goes_through_json_with_its_settings():
    loss = Focal(gamma=1.5, class_weights="balanced")
    assert msgspec.json.decode(msgspec.json.encode(loss), type=Loss) == loss
