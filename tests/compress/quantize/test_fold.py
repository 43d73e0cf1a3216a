"""BatchNorm folded into the layer before it."""

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.networks import DsCnn, MobileNetV1, ResNet8, build
from compress.networks.named_layers import named_layers
from compress.quantize.fold import fold_batch_norm


def settled(model, seed=0):
    """Give every BatchNorm statistics and parameters that a trained one could have."""
    rng = np.random.default_rng(seed)
    for _, layer in named_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            layer.moving_mean.assign(rng.normal(0, 1, size))
            layer.moving_variance.assign(rng.uniform(0.2, 3, size))
            if layer.scale:
                layer.gamma.assign(rng.uniform(-1, 2, size))
            if layer.center:
                layer.beta.assign(rng.normal(0, 1, size))
    return model


def sequential(*stack, shape=(8, 8, 4)):
    return settled(tf_keras.Sequential([layers.Input(shape), *stack]))


def largest_difference(model, folded):
    shape = (4, *model.input_shape[1:])
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    before, after = (np.asarray(m(x, training=False)) for m in (model, folded))
    return np.abs(before - after).max() / max(1, np.abs(before).max())


def norms(model):
    return [name for name, layer in named_layers(model) if "BatchNorm" in type(layer).__name__]


@pytest.mark.parametrize(("norm", "rate"), [(layers.BatchNormalization, 0.0), (layers.ReLU, 0.4)])
def test_dropout_rests_where_a_norm_that_made_up_for_it_is_gone(norm, rate):
    made_of = [layers.Conv2D(6, 3), norm(), layers.Dropout(0.4, name="d"), layers.Dense(5)]
    model = sequential(*made_of)
    folded, _ = fold_batch_norm(model)
    assert folded.get_layer("d").rate == rate
    assert model.get_layer("d").rate == 0.4
    assert largest_difference(model, folded) < 1e-5


@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(6, 3, use_bias=False),
        layers.Conv2D(6, 3, strides=2, padding="same"),
        layers.Conv2D(8, 3, groups=2),
        layers.Conv2DTranspose(6, 3, strides=2),
        layers.DepthwiseConv2D(3),
        layers.DepthwiseConv2D(3, depth_multiplier=3, use_bias=False),
        layers.Dense(5),
    ],
    ids=["no bias", "stride", "grouped", "transposed", "depthwise", "multiplier", "dense"],
)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}])
def test_a_folded_layer_gives_the_same_numbers(layer, options):
    layer = type(layer).from_config(layer.get_config())
    model = sequential(layer, layers.BatchNormalization(**options), layers.ReLU())
    folded, reasons = fold_batch_norm(model)
    assert (norms(folded), reasons) == ([], {})
    assert largest_difference(model, folded) < 1e-5


@pytest.mark.parametrize("network", [ResNet8(), MobileNetV1(), DsCnn()])
def test_the_reference_networks_fold_whole(network):
    model = settled(build(network, input_shape=(28, 28, 1), classes=10, seed=0))
    folded, reasons = fold_batch_norm(model)
    assert (norms(folded), reasons) == ([], {})
    assert largest_difference(model, folded) < 1e-5


def test_layers_inside_a_model_fold_under_the_name_that_the_export_gives_them():
    inner = tf_keras.Sequential(
        [layers.Input((8, 8, 4)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization()],
        name="inner",
    )
    model = sequential(inner, layers.Flatten(), layers.Dense(3))
    settled(model)
    folded, _ = fold_batch_norm(model)
    assert norms(folded) == []
    assert "inner/conv" in [layer.name for layer in folded.layers]
    assert largest_difference(model, folded) < 1e-5


def test_the_model_that_is_folded_is_left_alone():
    model = sequential(layers.Conv2D(3, 3), layers.BatchNormalization())
    before = [w.copy() for w in model.get_weights()]
    fold_batch_norm(model)
    assert norms(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    ("stack", "why"),
    [
        ([layers.Conv2D(3, 3, activation="relu")], "applies its relu before it"),
        ([layers.Conv2D(3, 3), layers.ReLU()], "follows the activation 're_lu"),
        ([layers.MaxPooling2D()], "a MaxPooling2D, which has no kernel"),
    ],
    ids=["activation", "relu", "pool"],
)
def test_a_norm_that_cannot_be_folded_stays_and_says_why(stack, why):
    stack = [type(layer).from_config(layer.get_config()) for layer in stack]
    model = sequential(*stack, layers.BatchNormalization(name="bn"))
    folded, reasons = fold_batch_norm(model)
    assert norms(folded) == ["bn"]
    assert why in reasons["bn"]
    assert largest_difference(model, folded) < 1e-6


def test_a_norm_with_the_statistics_of_each_batch_stays():
    x = inputs = layers.Input((8, 8, 4))
    x = layers.BatchNormalization(name="bn")(layers.Conv2D(3, 3)(x), training=True)
    _, reasons = fold_batch_norm(tf_keras.Model(inputs, x))
    assert "statistics of each batch" in reasons["bn"]


def test_a_result_that_others_read_is_not_folded_into():
    inputs = layers.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    y = layers.BatchNormalization(name="bn")(x)
    model = settled(tf_keras.Model(inputs, layers.Add()([x, y])))
    folded, reasons = fold_batch_norm(model)
    assert reasons["bn"] == "the result of 'conv' is read by 2 layers"
    assert largest_difference(model, folded) < 1e-6


def test_a_layer_that_is_called_twice_stays_one_layer():
    shared, norm = layers.Dense(4, name="shared"), layers.BatchNormalization(name="bn")
    inputs = layers.Input((4,))
    model = settled(tf_keras.Model(inputs, norm(shared(norm(shared(inputs))))))
    folded, reasons = fold_batch_norm(model)
    assert reasons == {"bn": "it is called 2 times"}
    assert [layer.name for layer in folded.layers].count("shared") == 1
    assert largest_difference(model, folded) < 1e-6
