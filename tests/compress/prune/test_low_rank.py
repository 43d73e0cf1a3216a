"""Two thin layers in the place of a wide one."""

import msgspec
import numpy as np
import pytest
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

from compress.networks.named_layers import named_layers
from compress.prune.low_rank import (
    ByEnergy,
    ByRank,
    BySpeed,
    LowRank,
    Split,
    check_low_rank_names,
    factors,
    low_rank,
    rank_for,
    reasons_whole,
    split_layers,
    splits,
)
from compress.train.fit import Fit
from deploy.errors import UserError

layers = tf_keras.layers


def stacked(*stack, shape):
    tf_keras.utils.set_random_seed(3)
    model = tf_keras.Sequential([layers.Input(shape), *stack], name="tiny")
    rng = np.random.default_rng(3)
    model.set_weights([w + rng.normal(0, 0.1, w.shape) for w in model.get_weights()])  # biases too
    return model


def network():
    return stacked(
        layers.Conv2D(12, 3, activation="relu", name="conv1"),
        layers.BatchNormalization(name="norm"),
        layers.Conv2D(12, 3, activation="relu", name="conv2"),
        layers.Flatten(name="flatten"),
        layers.Dense(24, activation="relu", name="dense"),
        layers.Dense(3, activation="softmax", name="classes"),
        shape=(8, 8, 1),
    )


def thin(model, name, rank):
    """Give a dense layer or convolution a kernel of a rank, but for rounding."""
    layer = model.get_layer(name)
    kernel, *rest = layer.get_weights()
    matrix = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values[rank:] = 0
    layer.set_weights([((left * values) @ right).reshape(kernel.shape), *rest])
    return model


def largest_difference(one, other):
    x = np.random.default_rng(1).normal(size=(4, *one.input_shape[1:])).astype(np.float32)
    a, b = (np.asarray(model(x, training=False)) for model in (one, other))
    assert a.shape == b.shape
    return np.abs(a - b).max() / max(1, np.abs(a).max())


CONVOLUTIONS = {
    "valid": {"kernel_size": 3},
    "same": {"kernel_size": 3, "padding": "same"},
    "even": {"kernel_size": 4, "padding": "same"},
    "stride": {"kernel_size": 3, "strides": 2, "padding": "same"},
    "oblong": {"kernel_size": (5, 2), "strides": (2, 1)},
    "dilated": {"kernel_size": 3, "dilation_rate": 2},
    "no bias": {"kernel_size": 3, "use_bias": False},
    "1x1": {"kernel_size": 1, "strides": 2},
}


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_at_full_rank_gives_the_same_numbers(options, scheme):
    layer = layers.Conv2D(6, activation="relu", name="conv", **options)
    model = stacked(layer, shape=(9, 10, 4))
    height, width, inputs, outputs = layer.kernel.shape
    channel = min(height * width * inputs, outputs)
    full = channel if scheme == "channel" else min(height * inputs, width * outputs)
    made = split_layers(model, {"conv": Split(scheme, full)})
    assert [name for name, _ in named_layers(made)][-2:] == ["conv_basis", "conv"]
    assert largest_difference(model, made) < 1e-5


@pytest.mark.parametrize("shape", [(7,), (5, 7)])
def test_a_dense_layer_at_full_rank_gives_the_same_numbers(shape):
    layer = layers.Dense(5, activation="tanh", kernel_initializer="identity", name="dense")
    model = stacked(layer, shape=shape)
    made = split_layers(model, {"dense": Split("channel", 5)})
    assert largest_difference(model, made) < 1e-5


@pytest.mark.parametrize("scheme", ["channel", "spatial"])
@given(rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_what_is_lost_is_the_energy_of_the_values_left_out(scheme, rank, seed):
    kernel = np.random.default_rng(seed).normal(size=(3, 2, 4, 6)).astype(np.float32)
    basis, mixing = (f.astype(np.float64) for f in factors(kernel, Split(scheme, rank)))
    if scheme == "channel":
        near = np.einsum("hwir,abro->hwio", basis, mixing)
        matrix = kernel.reshape(-1, 6)
    else:
        near = np.einsum("hair,bwro->hwio", basis, mixing)
        matrix = kernel.transpose(0, 2, 1, 3).reshape(12, 12)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert np.sum((near - kernel) ** 2) == pytest.approx(np.sum(values[rank:] ** 2), abs=1e-4)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.floats(0.01, 1))
def test_the_rank_is_the_smallest_that_keeps_the_energy(values, kept):
    values = np.sort(values)[::-1]
    share = np.cumsum(values**2) / np.sum(values**2)
    rank = rank_for(values, kept)
    assert share[rank - 1] >= kept - 1e-9
    assert rank == 1 or share[rank - 2] < kept


def test_a_kernel_of_low_rank_is_split_without_a_loss_and_by_its_rank_alone(tiny_task):
    model = thin(network(), "dense", 3)
    step = LowRank(by=ByEnergy(kept=1.0))
    made, history = low_rank(model, step, tiny_task, seed=0)
    assert history is None
    assert made.get_layer("dense_basis").units == 3
    assert made.count_params() < model.count_params()
    assert largest_difference(model, made) < 1e-5
    reasons = reasons_whole(model, step, made)
    assert set(reasons) == {"conv1", "norm", "conv2", "classes"}
    assert reasons["norm"] == "layers of type BatchNormalization are not split"
    assert "at rank 12 of 12 two layers (channel) would take 1.11× its mult" in reasons["conv2"]


def test_the_original_is_left_alone(tiny_task):
    model = network()
    before = [w.copy() for w in model.get_weights()]
    step = LowRank(by=ByRank(rank=2), fine_tune=Fit(epochs=1, batch_size=64))
    made, history = low_rank(model, step, tiny_task, seed=0)
    assert len(history.epochs) == 1
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert {name for name, _ in named_layers(model)}.isdisjoint({"conv2_basis", "dense_basis"})
    assert "dense_basis" in {name for name, _ in named_layers(made)}


def test_fine_tuning_trains_both_of_two_layers(tiny_task):
    step = LowRank(by=ByRank(rank=2))
    whole = network()
    still, _ = low_rank(whole, step, tiny_task, seed=0)
    tuned = msgspec.structs.replace(step, fine_tune=Fit(epochs=1, batch_size=64))
    moved, _ = low_rank(whole, tuned, tiny_task, seed=0)
    for name in ("dense_basis", "dense"):
        pair = (model.get_layer(name).get_weights()[0] for model in (still, moved))
        assert not np.array_equal(*pair)


def test_layers_that_are_more_work_as_two_stay_whole_with_the_reason():
    step = LowRank(by=ByRank(rank=10), skip=("dense",), scheme="channel")
    plan, reasons = splits(network(), step)
    assert plan == {"conv2": Split("channel", 10)}
    assert reasons["dense"] == "skipped: 'dense'"
    assert reasons["conv1"] == (  # 9 · (9 + 12) in the place of 9 · 12
        "at rank 9 of 9 two layers (channel) would take 1.75× its multiplications and 1.75× its "
        "weights"
    )
    grouped = stacked(layers.Conv2D(8, 3, groups=2, name="conv"), shape=(8, 8, 4))
    assert splits(grouped, LowRank())[1]["conv"].startswith("its channels are in 2 groups")
    bound = stacked(layers.Dense(64, kernel_constraint="non_neg", name="dense"), shape=(64,))
    assert "constraint" in splits(bound, LowRank())[1]["dense"]


def test_auto_takes_the_scheme_that_is_less_work_with_strides_counted():
    """16 → 16 channels, 5×5, rank 8: channel 8·(25·16 + 16) = 3328, spatial 8·(5·16 + 5·16) = 1280."""
    model = stacked(layers.Conv2D(16, 5, padding="same", name="conv"), shape=(8, 8, 16))
    by_rank = LowRank(by=ByRank(rank=8))
    assert splits(model, by_rank)[0] == {"conv": Split("spatial", 8)}
    only = msgspec.structs.replace(by_rank, scheme="channel")
    assert splits(model, only)[0] == {"conv": Split("channel", 8)}
    # With a step of 4 the first layer computes 4 columns for each that is kept.
    strided = stacked(
        layers.Conv2D(16, 2, strides=4, padding="same", name="conv"), shape=(8, 8, 16)
    )
    plan, _ = splits(strided, msgspec.structs.replace(by_rank, by=ByRank(rank=6)))
    assert plan == {"conv": Split("channel", 6)}


def test_ranks_are_rounded_up_and_single_layers_have_their_own():
    step = LowRank(by=ByRank(rank=5), multiple_of=4, per_layer={"dense": 3}, scheme="channel")
    plan, _ = splits(network(), step)
    assert plan["conv2"].rank == 8
    assert plan["dense"].rank == 4


def test_layers_of_a_model_inside_the_model_and_shared_ones_are_split_too(tiny_task):
    inner = tf_keras.Sequential([layers.Input((8,)), layers.Dense(8, name="dense")], name="inner")
    shared = layers.Dense(8, name="shared")
    x = tf_keras.Input((8,))
    y = layers.Dense(3, name="classes")(shared(shared(inner(x))))
    model = tf_keras.Model(x, y)
    made, _ = low_rank(model, LowRank(by=ByRank(rank=2)), tiny_task, seed=0)
    names = [name for name, _ in named_layers(made)]
    assert {"inner/dense_basis", "inner/dense", "shared_basis", "shared"} <= set(names)
    full = {name: Split("channel", 8) for name in ("inner/dense", "shared")}
    assert largest_difference(model, split_layers(model, full)) < 1e-5
    again = splits(made, LowRank(by=ByRank(rank=1)))[1]
    assert again["shared"] == "was split before"


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (LowRank(skip=("conv9",)), "skip: no layer is named 'conv9'; there are conv1, "),
        (LowRank(per_layer={"no": 2}), "per_layer: no layer is named 'no'"),
        (LowRank(per_layer={"norm": 2}), "per_layer: 'norm' cannot be split at rank 2: layers of"),
        (LowRank(per_layer={"classes": 3}), "'classes' cannot be split at rank 3: at rank 3 of 3"),
        (LowRank(skip=("*",)), "nothing is left to split"),
        (LowRank(by=ByRank(rank=500)), "nothing is left to split"),
    ],
)
def test_a_step_that_cannot_be_meant_is_one_line_before_any_training(step, says):
    with pytest.raises(UserError, match=r"^[^\n]*$") as refused:
        check_low_rank_names(network(), step)
    assert says in str(refused.value)


def test_a_network_that_needs_its_whole_rank_is_refused_with_every_reason(tiny_task):
    with pytest.raises(UserError, match=r"nothing is left to split \(conv1: .*classes: "):
        low_rank(network(), LowRank(by=ByEnergy(kept=1.0)), tiny_task, seed=0)


def by_weights(model):
    """Return a made-up speed: that of a machine whose time is its weights alone."""
    whole = model.count_params()
    return lambda candidate: whole / candidate.count_params()


def test_a_latency_keeps_the_most_energy_that_is_fast_enough(tiny_task):
    model = network()
    seen = []

    def measure(candidate):
        seen.append(by_weights(model)(candidate))
        return seen[-1]

    step = LowRank(by=BySpeed(speedup=1.5))
    made, _ = low_rank(model, step, tiny_task, seed=0, measure=measure)
    assert by_weights(model)(made) >= 1.5
    assert len(seen) < 12
    plan, _ = splits(model, step, kept=0.99)
    if plan:
        assert by_weights(model)(split_layers(model, plan)) < 1.5
    with pytest.raises(UserError, match=r"by\.speedup: 100× was not reached: with 30% of each"):
        low_rank(model, LowRank(by=BySpeed(speedup=100)), tiny_task, seed=0, measure=measure)


def test_a_layer_whose_pair_measures_no_faster_stays_whole(tiny_task):
    model = network()

    def measure(candidate):
        names = {name for name, _ in named_layers(candidate)}
        return 2.0 - 0.5 * ("conv2_basis" in names)

    step = LowRank(by=BySpeed(speedup=1.2))
    made, _ = low_rank(model, step, tiny_task, seed=0, measure=measure)
    names = {name for name, _ in named_layers(made)}
    assert "conv2_basis" not in names
    reasons = reasons_whole(model, step, made)
    assert (
        reasons["conv2"]
        == "two layers in its place are no less work at the energy kept, or measured no faster"
    )
