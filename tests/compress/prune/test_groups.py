"""Channels that go together, found and taken out of networks of every shape."""

import numpy as np
import tf_keras
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tf_keras import layers

from compress.networks.named_layers import named_layers
from compress.prune.cost import macs, parameters
from compress.prune.groups import couple, narrowed

ACTIVATIONS = st.sampled_from(["linear", "relu", "tanh"])
WIDTHS = st.integers(2, 5)
OPERATIONS = st.one_of(
    st.tuples(st.just("conv"), WIDTHS, ACTIVATIONS),
    st.tuples(st.just("separable"), WIDTHS, st.booleans()),
    st.tuples(st.just("transposed"), WIDTHS),
    st.tuples(st.just("depthwise"), st.integers(1, 2), st.booleans()),
    st.tuples(st.just("grouped"), st.sampled_from([2, 3]), st.integers(1, 2)),
    st.tuples(st.just("one group a channel"), st.integers(1, 2)),
    st.tuples(st.just("residual"), st.booleans()),
    st.tuples(st.just("dense concat"), WIDTHS),
    st.tuples(st.just("squeeze"), WIDTHS),
    st.tuples(st.just("shared")),
    st.tuples(st.just("nested"), WIDTHS, st.booleans()),
    st.tuples(st.just("norm"), st.sampled_from(["batch", "prelu", "prelu shared"])),
    st.tuples(st.just("pool"), st.sampled_from(["max", "average"])),
    st.tuples(st.just("reshaped")),
)
ENDS = st.sampled_from(["flatten", "global", "both", "fold and flatten"])
SIDE, INPUTS = 4, 2


def grown(x, operation):  # noqa: C901  # one case an operation
    """Return the tensor after one operation of ``OPERATIONS``."""
    kind, *given = operation
    channels, side = x.shape[-1], x.shape[1]

    def conv(width, activation="linear"):
        return layers.Conv2D(width, 2, padding="same", activation=activation)

    match kind:
        case "conv":
            return conv(*given)(x)
        case "separable":
            return layers.SeparableConv2D(given[0], 2, padding="same", use_bias=given[1])(x)
        case "transposed":
            return layers.Conv2DTranspose(given[0], 2, padding="same")(x)
        case "depthwise":
            bias = given[1]
            return layers.DepthwiseConv2D(
                2, padding="same", depth_multiplier=given[0], use_bias=bias
            )(x)
        case "grouped":
            groups, each = given
            x = conv(2 * groups)(x)
            return layers.Conv2D(2 * each * groups, 1, groups=groups)(x)
        case "one group a channel":
            return layers.Conv2D(given[0] * channels, 2, padding="same", groups=channels)(x)
        case "residual":
            y = conv(channels)(conv(3, "relu")(x))
            return layers.Add()([conv(channels)(x) if given[0] else x, y])
        case "dense concat":
            return layers.Concatenate()([x, conv(given[0], "relu")(x)])
        case "squeeze":
            y = layers.Dense(given[0], activation="relu")(
                layers.GlobalAveragePooling2D(keepdims=True)(x)
            )
            return layers.Multiply()([x, layers.Dense(channels, activation="sigmoid")(y)])
        case "shared":
            twice = conv(channels, "relu")
            return twice(twice(x))
        case "nested":
            inside = layers.Input(x.shape[1:])
            y = layers.BatchNormalization()(conv(given[0], "relu")(inside))
            if given[1]:
                y = layers.Concatenate()([inside, y])
            return tf_keras.Model(inside, y)(x)
        case "norm":
            if given[0] == "batch":
                return layers.ReLU()(layers.BatchNormalization()(x))
            return layers.PReLU(shared_axes=[1, 2] if given[0] == "prelu shared" else None)(x)
        case "pool":
            pool = layers.MaxPooling2D if given[0] == "max" else layers.AveragePooling2D
            return pool(2, padding="same")(x)
        case "reshaped":
            return layers.Reshape((side, side, channels))(
                layers.Reshape((side * side, channels))(x)
            )
    raise AssertionError(kind)


def network(operations, end):
    inputs = layers.Input((SIDE, SIDE, INPUTS))
    x = layers.Conv2D(4, 2, padding="same")(inputs)
    for operation in operations:
        x = grown(x, operation)
    flat, mean = layers.Flatten(), layers.GlobalAveragePooling2D()
    match end:
        case "flatten":
            x = flat(x)
        case "global":
            x = mean(x)
        case "both":
            x = layers.Concatenate()([layers.Dense(3, activation="tanh")(flat(x)), mean(x)])
        case "fold and flatten":
            units = 2 * x.shape[-1]
            x = flat(
                layers.Conv1D(3, 1)(layers.Reshape((2, units // 2))(layers.Dense(units)(mean(x))))
            )
    return tf_keras.Model(inputs, layers.Dense(3, name="last")(x))


def randomised(model, seed):
    rng = np.random.default_rng(seed)
    for _, layer in named_layers(model):
        layer.set_weights(
            [
                rng.uniform(0.3, 1.5, w.shape)
                if "variance" in v.name
                else rng.normal(0, 0.5, w.shape)
                for v, w in zip(layer.weights, layer.get_weights(), strict=True)
            ]
        )
    return model


def zeroed(model, coupling, keep):
    """Zero what gives the units that go their values: the original's own layers, nothing removed."""
    for name, layer in named_layers(model):
        if not layer.weights:
            continue
        wiring = coupling.wiring[name]
        gone = ~keep[wiring.gives]
        weights = dict(
            zip(
                (v.name.split("/")[-1].split(":")[0] for v in layer.weights),
                layer.get_weights(),
                strict=True,
            )
        )
        kind = type(layer).__name__
        for which, weight in weights.items():
            if which == "depthwise_kernel" and kind == "DepthwiseConv2D":
                weight.reshape(*weight.shape[:2], -1)[..., gone] = 0
            elif kind == "Conv2DTranspose" and which == "kernel":
                weight[..., gone, :] = 0
            elif which in {"kernel", "bias", "pointwise_kernel", "gamma", "beta"}:
                weight[..., gone] = 0
        layer.set_weights(list(weights.values()))


def some_kept(coupling, seed):
    """Return a choice that keeps one unit or more of each group."""
    rng, keep = np.random.default_rng(seed), coupling.all_kept()
    for group in coupling.groups:
        gone = rng.permutation(group.units)[: rng.integers(1, len(group.units))]
        keep[gone] = False
    return keep


@settings(
    max_examples=220,
    phases=[
        Phase.generate
    ],  # an example is small as it is, and building hundreds more takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(OPERATIONS, min_size=1, max_size=3), ENDS, st.integers(0, 10**6))
def test_a_narrowed_network_answers_as_the_one_whose_channels_are_zero(operations, end, seed):
    tf_keras.backend.clear_session()
    model = randomised(network(operations, end), seed)
    coupling = couple(model)
    keep = some_kept(coupling, seed)
    assert coupling.groups
    small = narrowed(coupling, keep)
    zeroed(model, coupling, keep)
    x = np.random.default_rng(seed).normal(size=(3, SIDE, SIDE, INPUTS)).astype(np.float32)
    expected = np.asarray(model(x, training=False))
    got = np.asarray(small(x, training=False))
    assert np.abs(expected - got).max() <= 1e-5 * max(1, np.abs(expected).max())
    assert small.count_params() == parameters(coupling, keep) < model.count_params()
    assert macs(coupling, keep) < macs(coupling, coupling.all_kept())
