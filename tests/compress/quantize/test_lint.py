import dataclasses

import numpy as np
import pytest
from onnx import helper, numpy_helper

from compress.data.task import Split
from compress.quantize.lint import lint_calibration
from deploy.goals import default_metric
from deploy.graph import array_of
from deploy.record import Goal
from tests.compress.quantize.networks import images, network, task_with


def task(x, *, y=None, train=None, kind="classification"):
    y = np.arange(len(x)) % 3 if y is None else y
    calibration = Split(raw=x, x=x, y=y)
    given = x if train is None else train
    training = Split(raw=given, x=given, y=np.zeros(len(given), np.int64))
    goal = Goal(task=kind, metric=default_metric(kind))
    return dataclasses.replace(task_with(x), calibration=calibration, train=training, goal=goal)


def model(**changes):
    made = network()
    for tensor in made.graph.initializer:
        if (name := tensor.name.replace("/", "_")) in changes:
            values = array_of(tensor).copy()
            tensor.CopyFrom(numpy_helper.from_array(changes[name](values), tensor.name))
    return made


def awake(bias):
    """Keep every channel of the stem above zero for some sample."""
    return bias + np.float32(1)


HEALTHY = {"stem_bias": awake}


def found(x, *, of=None, **how):
    return lint_calibration(model(**HEALTHY) if of is None else of, task(x, **how))


def test_a_good_set_is_not_complained_of():
    assert found(images(200)) == ()


def test_few_samples_are_named_with_how_many_to_give():
    (said,) = found(images(20))
    assert "20 samples are few" in said
    assert "give 100 or more" in said


def test_classes_without_a_sample_are_named():
    (said,) = found(images(200), y=np.zeros(200, np.int64))
    assert "2 of 3 classes have no sample (b, c); give samples of every class" in said


@pytest.mark.parametrize("other", [lambda x: 255 * x, lambda x: x / 3, lambda x: x + 5])
def test_inputs_that_are_scaled_otherwise_than_in_training_are_found(other):
    x = images(200)
    (said,) = found(x, train=other(x))
    assert "inputs lie in [" in said
    assert "preprocessed as in training" in said


def dead_channel(bias):
    bias = awake(bias)
    bias[3] = -100
    return bias


def test_a_channel_that_never_moves_is_found():
    (said,) = found(images(200), of=model(stem_bias=dead_channel))
    assert "(1 of 8 in 'stem')" in said
    assert "add those, else the network is larger than it needs to be" in said


def clipped(bias):
    """Return the network whose stem ends in a ReLU6."""
    made = model(stem_bias=bias)
    relu = next(node for node in made.graph.node if node.name == "stem/relu")
    relu.op_type = "Clip"
    relu.input.extend(["zero", "six"])
    made.graph.initializer.extend(
        [
            helper.make_tensor("zero", 1, [], [0.0]),
            helper.make_tensor("six", 1, [], [6.0]),
        ]
    )
    return made


def test_a_channel_that_stands_at_its_bound_is_found():
    def near_six(bias):
        bias = awake(bias)
        bias[2] += 5.2
        return bias

    (said,) = found(images(200), of=clipped(near_six))
    assert "stand at their upper bound for most of the samples (1 of 8 in 'stem')" in said
    assert found(images(200), of=clipped(awake)) == ()


@pytest.mark.parametrize("samples", [20, 200])
def test_halves_that_disagree_are_found(samples):
    x = images(samples)
    x[-1, 0, 0, 0] = 9
    (*_, said) = found(x)
    assert "two halves of the samples disagree" in said
    assert 'give more samples, or calibration = "percentile"' in said


def test_labels_without_a_sample_are_named():
    labels = np.tile([1, 0, 1], (200, 1))
    (said,) = found(images(200), y=labels, kind="multi_label")
    assert "1 of 3 labels have no sample (b); give samples of every label" in said


@pytest.mark.parametrize("y", [np.zeros((200, 3)), np.full((200, 3), 7)], ids=["floats", "counts"])
def test_a_regression_misses_no_class(y):
    assert found(images(200), y=y, kind="regression") == ()


class Unread:
    """The truth of a reconstruction: as large as the samples, and nothing to the lint."""

    def __len__(self):
        return 200

    def __array__(self, *_):
        raise AssertionError("was read as a whole")


def test_a_reconstruction_misses_no_class_and_its_truth_is_not_read():
    assert found(images(200), y=Unread(), kind="reconstruction") == ()


@pytest.mark.parametrize("kind", ["regression", "reconstruction"])
def test_samples_of_a_task_without_classes_are_looked_at_like_others(kind):
    (said,) = found(images(200), y=np.zeros((200, 3)), train=255 * images(200), kind=kind)
    assert "preprocessed as in training" in said


def test_one_sample_is_enough_to_be_looked_at():
    assert any("1 samples are few" in said for said in found(images(1)))
