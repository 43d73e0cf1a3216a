"""Whether a network of the user's own does the task."""

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.networks.fitted import fitted_to_task
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
