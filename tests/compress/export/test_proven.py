"""An export proves itself, or says why it cannot."""

import msgspec
import numpy as np
import pytest
import tf_keras
from onnx import numpy_helper

from compress.export.proven import Export, export
from deploy.errors import UserError
from deploy.session import open_model


@pytest.fixture(scope="module")
def model():
    layers = tf_keras.layers
    return tf_keras.Sequential([layers.Input((4,)), layers.Dense(3)], name="small")


def test_samples_of_another_shape_name_both_shapes(model):
    with pytest.raises(
        UserError, match=r"model 'small': takes samples of shape \(4,\), .* have \(6, 6, 1\) after"
    ):
        export(model, Export(), np.zeros((2, 6, 6, 1), np.float32))


def test_samples_that_preprocessing_left_as_bytes_are_compared_as_they_will_run(model):
    samples = np.uint8([[0, 255, 3, 4]])
    exported = export(model, Export(), samples)
    assert open_model(exported.SerializeToString()).scores(samples).shape == (1, 3)


@pytest.mark.parametrize("tolerance", ["inf", "nan", "0.0", "-1.0", "1.5"])
def test_a_tolerance_that_would_prove_nothing_is_refused(tolerance):
    with pytest.raises(msgspec.ValidationError, match="tolerance"):
        msgspec.toml.decode(f"tolerance = {tolerance}", type=Export)


def test_logits_in_the_thousands_are_compared_by_their_size():
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((64,)), layers.Dense(64), layers.Dense(3)])
    model.set_weights([10 * weights for weights in model.get_weights()])
    samples = np.random.default_rng(0).normal(0, 100, (50, 64)).astype(np.float32)
    exported = export(model, Export(), samples)
    assert np.abs(open_model(exported.SerializeToString()).scores(samples)).max() > 1e3


def test_no_weight_of_a_masked_model_is_a_negative_zero_in_the_file():
    layers, rng = tf_keras.layers, np.random.default_rng(0)
    model = tf_keras.Sequential(
        [layers.Input((6, 6, 2)), layers.Conv2D(4, 3, activation="relu"), layers.Flatten(),
         layers.Dense(8, use_bias=False), layers.Dense(3)]
    )  # fmt: skip
    masked = [weights * (rng.random(weights.shape) < 0.5) for weights in model.get_weights()]
    model.set_weights(masked)
    assert any(np.signbit(weights[weights == 0]).any() for weights in masked)
    exported = export(model, Export(), rng.normal(size=(9, 6, 6, 2)).astype(np.float32))
    stored = [numpy_helper.to_array(tensor) for tensor in exported.graph.initializer]
    kernels = [weights for weights in masked if weights.ndim > 1]
    assert sum((w == 0).sum() for w in stored) >= sum((w == 0).sum() for w in kernels)
    assert not any(
        np.signbit(values[values == 0]).any() for values in stored if values.dtype.kind == "f"
    )
