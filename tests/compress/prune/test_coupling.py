"""Channels that go together, found and taken out of networks of every shape."""

import re

import numpy as np
import pytest
import tf_keras
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tf_keras import layers

from compress.networks.named_layers import named_layers
from compress.prune.cost import macs, parameters
from compress.prune.coupling import couple
from compress.prune.groups import narrowed
from tests.drawing import examples

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


@pytest.mark.drawn
@settings(
    max_examples=examples(205),
    phases=[
        Phase.generate
    ],  # an example is small as it is, and building hundreds more takes minutes
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(OPERATIONS, min_size=1, max_size=2), ENDS, st.integers(0, 10**6))
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


def model_of(*stack, shape=(4, 4, 2)):
    """Return a Sequential network that ends in a Dense of 3."""
    return tf_keras.Sequential(
        [layers.Input(shape), *stack, layers.Flatten(), layers.Dense(3, name="last")]
    )


def layers_of(coupling):
    return [group.layers for group in coupling.groups]


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Doubled(name="mine"), "'mine', which reads them, is a Doubled of your own code"),
        (layers.LayerNormalization(name="norm"), "'norm', which reads them, is a LayerNormalization, which weighs"),
        (layers.Softmax(name="soft"), "'soft', which reads them, is a Softmax, which weighs channels"),
        (layers.Activation("softmax", name="soft"), "'soft', which reads them, applies softmax"),
        (layers.Permute((3, 1, 2), name="turn"), "'turn', which reads them, moves the channels"),
        (layers.BatchNormalization(axis=1, name="norm"), r"'norm', which reads them, normalises axis \[1\]"),
        (layers.MaxPooling2D(data_format="channels_first", name="pool"), "'pool', which reads them, has its channels first"),
        (layers.ConvLSTM1D(2, 1, name="memory"), "'memory', which reads them, is a ConvLSTM1D, of which it is not known"),
    ],
)  # fmt: skip
def test_channels_that_cannot_go_have_their_reason(between, reason):
    between = type(between).from_config(between.get_config())
    coupling = couple(model_of(layers.Conv2D(4, 1, name="first"), between))
    assert not coupling.group_of("first")
    assert coupling.reasons["first"].startswith("its channels have to stay: ")
    assert re.search(reason, coupling.reasons["first"])


def test_what_a_network_gives_stays_and_what_it_is_given_too():
    coupling = couple(model_of(layers.Conv2D(4, 1, name="first")))
    assert coupling.reasons == {
        "last": "its channels have to stay: they are what the network gives"
    }
    assert set(coupling.pinned.values()) == {
        "they are what the network gives",
        "they are what the network is given",
    }


def test_channels_that_a_sum_brings_together_are_one_group():
    inputs = layers.Input((4, 4, 2))
    x = layers.Conv2D(4, 1, name="first")(inputs)
    y = layers.Conv2D(4, 1, name="third")(layers.Conv2D(6, 1, name="second")(x))
    x = layers.Flatten()(layers.Add()([x, y]))
    coupling = couple(tf_keras.Model(inputs, layers.Dense(3)(x)))
    assert sorted(layers_of(coupling)) == [("first", "third"), ("second",)]


def test_a_concatenation_that_is_added_to_splits_the_channels_of_the_other():
    inputs = layers.Input((4, 4, 2))
    one, other = (layers.Conv2D(n, 1, name=name)(inputs) for n, name in ((2, "one"), (3, "other")))
    both = layers.Conv2D(5, 1, name="both")(inputs)
    x = layers.Add()([layers.Concatenate()([one, other]), both])
    coupling = couple(tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))
    assert {(set(g.layers) - {"both"}).pop(): len(g.units) for g in coupling.groups} == {
        "one": 2,
        "other": 3,
    }


def test_a_reshape_that_mixes_channels_ties_them():
    # 4 × 4 × 6 as 24 × 4: every second channel comes to lie on every second place.
    mixed = couple(model_of(layers.Conv2D(6, 1, name="first"), layers.Reshape((24, 4), name="mix")))
    (group,) = mixed.groups
    assert (len(group.units), group.channels_per_unit) == (2, {"first": 3})
    tied = couple(model_of(layers.Conv2D(5, 1, name="first"), layers.Reshape((20, 4), name="mix")))
    assert tied.reasons["first"] == "its channels hang together through 'mix', so that none can go"


@pytest.mark.parametrize("shape", [(-1, 2), (2, -1)])
def test_a_reshape_that_is_called_on_two_sizes_fits_both_or_ties_them(shape):
    inputs = layers.Input((4, 4, 2))
    one, other = (layers.Conv2D(4, 1, strides=n, name=f"conv{n}")(inputs) for n in (1, 2))
    reshape, ends = layers.Reshape(shape, name="flat"), (layers.Dense(2), layers.Dense(2))
    flat = [end(layers.Flatten()(reshape(x))) for end, x in zip(ends, (one, other), strict=True)]
    model = randomised(tf_keras.Model(inputs, layers.Add()(flat)), 0)
    coupling = couple(model)
    keep = some_kept(coupling, 0)
    small = narrowed(coupling, keep)
    zeroed(model, coupling, keep)
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype(np.float32)
    assert np.allclose(model(x), small(x), atol=1e-5)
    if shape == (2, -1):  # 32 and 8 channels, of which no choice is the same
        assert "'flat' is called on others too" in coupling.reasons["conv1"]


def test_narrowing_leaves_its_input_alone_and_shares_nothing_with_it():
    model = model_of(layers.Conv2D(4, 1, name="first"))
    before = model.get_weights()
    coupling = couple(model)
    keep = coupling.all_kept()
    keep[coupling.groups[0].units[0]] = False
    small = narrowed(coupling, keep)
    small.set_weights([0 * w for w in small.get_weights()])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert small.get_layer("first").filters == 3
    assert [layer.name for layer in small.layers if layer.weights] == ["first", "last"]


def test_a_choice_that_would_break_the_network_is_refused():
    coupling = couple(model_of(layers.Conv2D(4, 1, name="first")))
    keep = coupling.all_kept()
    keep[coupling.groups[0].units] = False
    with pytest.raises(ValueError, match="first: no channel is left"):
        narrowed(coupling, keep)
    keep = coupling.all_kept()
    keep[coupling.wiring["last"].gives[0]] = False
    with pytest.raises(ValueError, match="has to stay: they are what the network gives"):
        narrowed(coupling, keep)


def test_costs_are_those_of_the_networks_that_come_out():
    model = model_of(layers.Conv2D(4, 3, padding="same"), layers.DepthwiseConv2D(3, padding="same"))
    coupling = couple(model)
    # 16 places × 3 × 3 × 2 × 4, 16 × 3 × 3 × 4, and 64 × 3
    assert macs(coupling, coupling.all_kept()) == 16 * 72 + 16 * 36 + 192
    assert parameters(coupling, coupling.all_kept()) == model.count_params()
