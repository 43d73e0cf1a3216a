"""Dead channels go, and no number changes."""

import numpy as np
import pytest
import tf_keras
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tf_keras import layers

from compress.networks import load_keras
from compress.networks.named_layers import named_layers
from compress.prune.dead import RemoveDead, dead_facts, remove_dead
from tests.compress.prune.test_coupling import (
    ENDS,
    INPUTS,
    OPERATIONS,
    SIDE,
    model_of,
    network,
    randomised,
)
from tests.drawing import examples


def largest_difference(model, made):
    x = np.random.default_rng(1).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    before, after = (np.asarray(m(x, training=False)) for m in (model, made))
    return np.abs(before - after).max() / max(1, np.abs(before).max())


def emptied(model, seed, share):
    """Zero whole inputs and outputs of kernels, as very high sparsity does."""
    rng = np.random.default_rng(seed)
    for _, layer in named_layers(model):
        if layer.weights and len(layer.weights[0].shape) > 1:
            kernel, *others = layer.get_weights()
            kernel[..., rng.random(kernel.shape[-1]) < share] = 0
            kernel[..., rng.random(kernel.shape[-2]) < share, :] = 0
            layer.set_weights([kernel, *others])
    return model


@pytest.mark.drawn
@settings(
    max_examples=examples(50),
    phases=[Phase.generate],  # as in test_coupling
    suppress_health_check=[HealthCheck.too_slow],
)
@given(st.lists(OPERATIONS, min_size=1, max_size=2), ENDS, st.integers(0, 10**6))
def test_no_number_changes_whatever_dies(operations, end, seed):
    tf_keras.backend.clear_session()
    model = emptied(randomised(network(operations, end), seed), seed, 0.5)
    made = remove_dead(model, RemoveDead())
    assert made.input_shape == (None, SIDE, SIDE, INPUTS)
    assert largest_difference(model, made) <= 1e-5


def set_kernel(layer, change):
    kernel, *others = layer.get_weights()
    change(kernel)
    layer.set_weights([kernel, *(np.ones_like(one) for one in others)])


def first_of_four_dead(*between, padding="valid", bias=True):
    """Return a network whose first convolution begins a channel of nothing but its bias, 1."""
    second = layers.Conv2D(5, 2, padding=padding, use_bias=bias, name="second")
    model = model_of(layers.Conv2D(4, 2, activation="relu", name="first"), *between, second)

    def kill(kernel):
        kernel[..., 0] = 0

    set_kernel(model.get_layer("first"), kill)
    return model


@pytest.mark.parametrize(
    "between",
    [
        [],
        [layers.MaxPooling2D(1)],
        [layers.BatchNormalization(), layers.ReLU()],
        [layers.DepthwiseConv2D(1, name="depthwise")],
        [layers.Dropout(0.5), layers.Activation("tanh")],
        [layers.PReLU(shared_axes=[1, 2])],
        [layers.Reshape((9, 4)), layers.Reshape((3, 3, 4))],
    ],
    ids=["nothing", "pool", "norm", "depthwise", "dropout", "prelu", "reshape"],
)
@pytest.mark.parametrize("bias", [True, False], ids=["into a bias", "into a new bias"])
def test_a_constant_goes_into_the_biases_of_what_reads_it(between, bias):
    fresh = [type(layer).from_config(layer.get_config()) for layer in between]
    model = first_of_four_dead(*fresh, bias=bias)
    made = remove_dead(model, RemoveDead())
    assert made.get_layer("first").filters == 3
    assert made.get_layer("second").use_bias
    assert largest_difference(model, made) <= 1e-6


def test_a_constant_that_padding_makes_vary_at_the_border_stays():
    model = first_of_four_dead(padding="same")
    assert remove_dead(model, RemoveDead()).get_layer("first").filters == 4


def test_a_channel_of_zeros_goes_whatever_the_padding():
    model = first_of_four_dead(padding="same")
    kernel, bias = model.get_layer("first").get_weights()
    bias[0] = -1  # which the ReLU makes 0
    model.get_layer("first").set_weights([kernel, bias])
    assert remove_dead(model, RemoveDead()).get_layer("first").filters == 3


def test_what_dies_when_others_are_gone_goes_too():
    model = model_of(layers.Flatten(), layers.Dense(6, name="one"), layers.Dense(4, name="two"))
    model.get_layer("last").set_weights([np.eye(4, 3, dtype=np.float32), np.zeros(3, np.float32)])
    two = np.zeros((6, 4), np.float32)
    two[0, 0] = two[1, 1] = two[2, 2] = two[3, 3] = 1  # what 3 gives nobody reads
    model.get_layer("two").set_weights([two, np.zeros(4, np.float32)])
    made = remove_dead(model, RemoveDead(gather_inputs=False))
    assert (made.get_layer("two").units, made.get_layer("one").units) == (3, 3)
    said = dead_facts(model, made, RemoveDead(gather_inputs=False))
    assert said == {
        "one": "keeps 3 of its 6 channels: the others were dead",
        "two": "keeps 3 of its 4 channels: the others were dead",
        "last": "keeps all 3 channels: its channels have to stay: they are what the network gives",
    }


def test_a_layer_keeps_a_channel_where_all_are_dead():
    model = model_of(layers.Conv2D(4, 1, name="first"))
    set_kernel(model.get_layer("last"), lambda kernel: kernel.fill(0))
    made = remove_dead(model, RemoveDead())
    assert made.get_layer("first").filters == 1
    assert largest_difference(model, made) == 0


def test_a_living_network_keeps_every_channel():
    model = randomised(model_of(layers.Conv2D(4, 1, name="first")), 0)
    made = remove_dead(model, RemoveDead())
    assert made.count_params() == model.count_params()
    said = dead_facts(model, made, RemoveDead())
    assert said["first"] == "keeps all 4 channels: none of them is dead"


def unread_features(count):
    """Return a network that has no weights for some of its 32 input features."""
    model = randomised(model_of(layers.Flatten(), layers.Dense(4, name="first")), 0)
    set_kernel(model.get_layer("first"), lambda kernel: kernel[:count].fill(0))
    return model


def test_input_features_that_nothing_reads_are_left_out_by_a_gather(tmp_path):
    model = unread_features(12)
    made = remove_dead(model, RemoveDead())
    assert made.get_layer("first").get_weights()[0].shape == (20, 4)
    assert largest_difference(model, made) <= 1e-6
    said = dead_facts(model, made, RemoveDead())["first"]
    assert said.endswith("takes 20 of 32 input features, by a Gather")
    made.save(tmp_path / "made.keras")
    assert largest_difference(model, load_keras(tmp_path / "made.keras")) <= 1e-6
    again = remove_dead(made, RemoveDead())
    assert again.count_params() == made.count_params()


@pytest.mark.parametrize(
    ("count", "step", "why"),
    [
        (3, RemoveDead(), "takes 3 input features that it does not need: a Gather would cost more"),
        (12, RemoveDead(gather_inputs=False), "that it does not need: gather_inputs is false"),
    ],
)
def test_input_features_that_stay_say_why(count, step, why):
    model = unread_features(count)
    made = remove_dead(model, step)
    assert made.get_layer("first").get_weights()[0].shape == (32, 4)
    assert why in dead_facts(model, made, step)["first"]


def test_an_input_channel_that_a_convolution_does_not_need_says_why_it_stays():
    model = randomised(model_of(layers.Conv2D(4, 1, name="first")), 0)
    set_kernel(model.get_layer("first"), lambda kernel: kernel[..., 0, :].fill(0))
    said = dead_facts(model, remove_dead(model, RemoveDead()), RemoveDead())["first"]
    assert said.endswith("only a Dense layer that is called once can leave them out")
