"""Channels equalised across layers: the same function from weights of one size."""

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.networks import DsCnn, LeNet5, MobileNetV1, ResNet8, build
from compress.networks.named_layers import named_layers
from compress.quantize.balance import balanced
from compress.quantize.fold import fold_batch_norm


def uneven(model, seed=0):
    """Give every kernel channels of very different sizes, and BatchNorm and biases numbers of their own."""
    rng = np.random.default_rng(seed)
    for _, layer in named_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            layer.moving_mean.assign(rng.normal(0, 0.1, size))
            layer.moving_variance.assign(rng.uniform(0.01, 3, size) ** 2)
            layer.gamma.assign(rng.uniform(0.1, 2, size))
            layer.beta.assign(rng.normal(0, 0.2, size))
        elif layer.weights:
            kernel, *bias = layer.get_weights()
            depthwise = isinstance(layer, layers.DepthwiseConv2D)
            sizes = np.exp(rng.normal(0, 1.5, kernel.shape[-2:] if depthwise else kernel.shape[-1]))
            biases = [rng.normal(0, 0.1, b.shape) * sizes.reshape(-1) for b in bias]
            layer.set_weights([kernel * sizes, *biases])
    return model


def sequential(*stack, shape=(8, 8, 4)):
    return uneven(tf_keras.Sequential([layers.Input(shape), *stack]))


def largest_difference(model, other):
    x = np.random.default_rng(1).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    before, after = (np.asarray(m(x, training=False)) for m in (model, other))
    return np.abs(before - after).max() / np.abs(before).max()


def outputs_of(model, name):
    """Return the largest weight or bias of each output channel of a layer."""
    kernel, bias = model.get_layer(name).get_weights()
    return np.maximum(np.abs(kernel).reshape(-1, len(bias)).max(axis=0), np.abs(bias))


def inputs_of(model, name, channels):
    """Return the largest weight that reads each channel."""
    kernel = model.get_layer(name).get_weights()[0]
    return np.abs(kernel).reshape(-1, channels, kernel.shape[-1]).max(axis=(0, 2))


def changed(model, made):
    """Return the names of the layers whose weights are others."""
    return [
        layer.name
        for layer in model.layers
        if any(
            not np.array_equal(*pair)
            for pair in zip(
                layer.get_weights(), made.get_layer(layer.name).get_weights(), strict=True
            )
        )
    ]


@pytest.mark.parametrize("network", [LeNet5(), ResNet8(), MobileNetV1(), DsCnn()], ids=repr)
def test_a_reference_network_gives_what_it_gave(network):
    folded, _ = fold_batch_norm(uneven(build(network, input_shape=(28, 28, 1), classes=10, seed=0)))
    assert largest_difference(folded, made := balanced(folded)) < 1e-4
    assert changed(folded, made)


CHAINS = {
    "convolutions": [layers.Conv2D(6, 3, name="a"), layers.ReLU(), layers.Conv2D(5, 3, name="b")],
    "fused": [layers.Conv2D(6, 3, activation="relu", name="a"), layers.Conv2D(5, 3, name="b")],
    "into depthwise": [
        layers.Conv2D(6, 3, name="a"),
        layers.Activation("relu"),
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="b"),
    ],
    "out of depthwise": [
        layers.DepthwiseConv2D(3, depth_multiplier=2, name="a"),
        layers.MaxPooling2D(),
        layers.Conv2D(5, 1, name="b"),
    ],
    "flattened": [
        layers.Conv2D(6, 3, name="a"),
        layers.LeakyReLU(0.1),
        layers.AveragePooling2D(),
        layers.Dropout(0.5),
        layers.Flatten(),
        layers.Dense(5, name="b"),
    ],
    "dense": [layers.Flatten(), layers.Dense(6, "relu", name="a"), layers.Dense(5, name="b")],
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_a_channel_and_its_readers_have_weights_of_one_size(chain):
    model = sequential(*(type(layer).from_config(layer.get_config()) for layer in chain))
    made = balanced(model)
    given = outputs_of(made, "a")
    np.testing.assert_allclose(given, inputs_of(made, "b", len(given)), rtol=1e-2)
    assert np.ptp(np.log(outputs_of(model, "a") / inputs_of(model, "b", len(given)))) > 1
    assert largest_difference(model, made) < 1e-5


class Conv2D(layers.Conv2D):
    """A user's own, of a name that Keras has as well."""

    def call(self, inputs):
        return super().call(tf_keras.backend.tanh(inputs))


def relu(x):
    return tf_keras.activations.relu(x, max_value=1.0)


LEFT = {
    "an activation that bends elsewhere": [
        layers.Conv2D(6, 3), layers.ReLU(6.0), layers.Conv2D(5, 3),
    ],
    "one that scales nothing": [layers.Conv2D(6, 3, activation="tanh"), layers.Conv2D(5, 3)],
    "a normalisation in between": [
        layers.Conv2D(6, 3), layers.BatchNormalization(), layers.Conv2D(5, 3),
    ],
    "channels read in groups": [layers.Conv2D(6, 3), layers.Conv2D(4, 3, groups=2)],
    "a layer of the user's own in between": [layers.Conv2D(6, 3), Conv2D(6, 3), layers.Conv2D(5, 3)],
    "a function of the user's own": [layers.Conv2D(6, 3, activation=relu), layers.Conv2D(5, 3)],
    "an order of its own": [
        layers.Conv2D(6, 3), layers.Flatten(data_format="channels_first"), layers.Dense(5),
    ],
    "results that are penalised": [
        layers.Conv2D(6, 3), layers.ReLU(activity_regularizer="l2"), layers.Conv2D(5, 3),
    ],
    "weights that are held to a size": [
        layers.Conv2D(6, 3, kernel_constraint="max_norm"), layers.ReLU(), layers.Conv2D(5, 3),
    ],
    "axes in another order": [
        layers.Conv2D(6, 3), layers.Permute((3, 1, 2)), layers.Flatten(), layers.Dense(5),
    ],
}  # fmt: skip


@pytest.mark.parametrize("chain", LEFT.values(), ids=LEFT)
def test_what_a_factor_cannot_pass_stays_as_it_is(chain):
    model = sequential(*chain)
    assert changed(model, balanced(model)) == []


def test_what_others_read_too_and_what_is_called_twice_stays_as_it_is():
    x = layers.Input((8, 8, 4))
    shared = layers.Conv2D(4, 3, padding="same", name="shared")
    first = layers.Conv2D(4, 3, padding="same", name="first")(x)
    twice = shared(shared(layers.ReLU()(first)))
    branch = layers.Conv2D(4, 3, padding="same", name="branch")(twice)
    added = layers.Add()([branch, layers.Conv2D(4, 1, name="side")(branch)])
    model = uneven(tf_keras.Model(x, [added, first]))
    assert changed(model, balanced(model)) == []


def test_an_output_of_the_model_stays_as_it_is_though_a_layer_reads_it():
    x = layers.Input((8, 8, 4))
    first = layers.Conv2D(4, 3, name="first")(x)
    model = uneven(tf_keras.Model(x, [first, layers.Conv2D(4, 3, name="second")(first)]))
    assert changed(model, balanced(model)) == []


def test_a_dead_channel_keeps_its_zeros_and_one_of_bias_alone_takes_no_range():
    model = sequential(layers.Conv2D(3, 3, name="a"), layers.ReLU(), layers.Conv2D(4, 3, name="b"))
    kernel, bias = model.get_layer("a").get_weights()
    kernel[..., 0] = bias[0] = 0
    kernel[..., 1], bias[1] = 1e-4, 20
    model.get_layer("a").set_weights([kernel, bias])
    reads, _ = model.get_layer("b").get_weights()
    reads[:, :, 1] *= 1e-3
    model.get_layer("b").set_weights([reads, np.zeros(4, np.float32)])
    made = balanced(model)
    kernel, bias = made.get_layer("a").get_weights()
    assert not kernel[..., 0].any()
    assert bias[1] < 1
    assert np.isfinite(kernel).all()
    assert largest_difference(model, made) < 1e-5


def test_zeros_stay_and_the_model_is_left_alone():
    model = sequential(layers.Conv2D(6, 3, name="a"), layers.ReLU(), layers.Conv2D(5, 3, name="b"))
    kernel, bias = model.get_layer("b").get_weights()
    kernel[np.abs(kernel) < np.median(np.abs(kernel))] = 0
    model.get_layer("b").set_weights([kernel, bias])
    before = [w.copy() for w in model.get_weights()]
    made = balanced(model)
    assert ((made.get_layer("b").get_weights()[0] == 0) == (kernel == 0)).all()
    for was, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
