"""Whether a network of the user's own does the task."""

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.networks.fitted import fitted_to_task
from compress.networks.heads import Head
from deploy.errors import UserError


def network(*, end="softmax", units=3, shape=(4,)):
    return tf_keras.Sequential([layers.Input(shape), layers.Dense(units, activation=end)])


def classifier(model, *, input_shape=(4,), classes=3):
    return fitted_to_task(model, input_shape=input_shape, classes=classes, where="mine")


def test_a_network_that_fits_is_left_as_it_is():
    model = network()
    assert classifier(model) is model


def test_logits_get_a_softmax():
    model = network(end=None)
    inputs = np.random.default_rng(0).normal(size=(5, 4))
    logits = np.asarray(model(inputs))
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.asarray(classifier(model)(inputs)), expected, atol=1e-6)


class Subclassed(tf_keras.Model):
    def call(self, x):
        return x


def two_outputs():
    x = layers.Input((4,))
    return tf_keras.Model(x, [layers.Dense(3)(x), layers.Dense(3)(x)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network(units=10), r"outputs of shape \(10,\), but the data has 3 classes"),
        (lambda: network(shape=(5,)), r"takes samples of shape \(5,\), but the data's are \(4,\)"),
        (lambda: network(shape=(None, 4)), r"takes samples of shape \(None, 4\)"),
        (lambda: network(end="sigmoid"), r"do not add up to 1 and come from 'sigmoid'"),
        (two_outputs, r"needs one input and one output, got 1 and 2"),
        (Subclassed, r"is a subclassed model"),
        (lambda: tf_keras.Sequential([layers.Dense(3)]), r"has no input shape"),
        (lambda: None, r"needs a tf_keras.Model, got builtins.NoneType"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_with_what_is_wrong(make, message):
    with pytest.raises(UserError, match=rf"^mine: .*{message}"):
        classifier(make())


def test_a_keras_3_model_is_told_from_a_tf_keras_one():
    import keras

    model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
    with pytest.raises(UserError, match=r"got keras\..*; build it with `import tf_keras`"):
        classifier(model)


def dense(units, activation=None):
    tf_keras.utils.set_random_seed(0)  # a tanh of positive weights is taken for probabilities
    return tf_keras.Sequential(
        [tf_keras.layers.Input((3,)), tf_keras.layers.Dense(units, activation=activation)]
    )


def for_task(model, task, **unit):
    return fitted_to_task(
        model, input_shape=(3,), classes=2, where="mine", head=Head(task=task, **unit)
    )


def test_labels_that_end_linearly_get_sigmoids_and_those_that_have_them_are_left_alone():
    x = np.float32([[1, -2, 30]])
    model = dense(2)
    outputs = for_task(model, "multi_label")(x).numpy()
    assert outputs == pytest.approx(1 / (1 + np.exp(-model(x).numpy())), abs=1e-6)
    ended = dense(2, "sigmoid")
    assert for_task(ended, "multi_label") is ended


def test_a_regression_is_brought_into_the_unit_of_its_targets_if_it_has_one():
    x, model = np.float32([[1, -2, 3]]), dense(2)
    outputs = for_task(model, "regression", mean=(10.0, -1.0), std=(2.0, 0.5))(x).numpy()
    assert outputs == pytest.approx(model(x).numpy() * (2, 0.5) + (10, -1), abs=1e-5)
    assert for_task(model, "regression") is model


@pytest.mark.parametrize(
    ("model", "task", "complaint"),
    [
        (lambda: dense(2, "softmax"), "regression", "ends in a softmax; a regression needs a lin"),
        (lambda: dense(5), "regression", r"shape \(5,\), but the data has 2 targets"),
        (lambda: dense(2, "tanh"), "multi_label", "from 'tanh'; end it with a sigmoid over the 2"),
        (lambda: dense(2), "reconstruction", r"shape \(2,\), but a reconstruction has the samples"),
    ],
)
def test_a_network_that_does_not_fit_the_kind_of_task_is_refused_in_one_line(
    model, task, complaint
):
    with pytest.raises(UserError, match=f"^mine: .*{complaint}"):
        for_task(model(), task)
