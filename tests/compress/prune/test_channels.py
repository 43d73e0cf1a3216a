"""Fewer channels, chosen, taken out and trained on."""

import msgspec
import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.prune import channels
from compress.prune.channels import (
    Faster,
    KeepMacs,
    KeepParameters,
    KeepRatio,
    PruneChannels,
    WidthsFrom,
    channel_facts,
    check_channel_names,
    prune_channels,
)
from compress.prune.cost import macs, parameters
from compress.prune.coupling import couple
from compress.steps import epochs_of, keras_step, reasons_left_alone
from compress.train.fit import Fit, History, TrainingFiles
from deploy.errors import UserError
from tests.deploy.test_widths import table

EPOCH = Fit(epochs=1, batch_size=64)


def network(seed=0):
    """Return a residual network: ``conv1`` and ``conv3`` are added, ``conv2`` lies between."""
    tf_keras.utils.set_random_seed(seed)
    inputs = layers.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, padding="same", name="conv1")(inputs)
    y = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.Add(name="add")([x, layers.Conv2D(8, 3, padding="same", name="conv3")(y)])
    x = layers.Flatten(name="flatten")(layers.MaxPooling2D(name="pool")(x))
    x = layers.Dense(20, activation="relu", name="dense1")(x)
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="dense2")(x))


def step(target=None, **fields):
    return PruneChannels(**{"target": target, "fine_tune": EPOCH, "distill": False} | fields)


@pytest.fixture
def untrained(monkeypatch):
    """Leave the training out: what is chosen does not depend on it."""
    told = []

    def fit(_model, _task, config, **_):
        told.append(config)
        return History(epochs=({},) * config.epochs, kept_epoch=config.epochs)

    monkeypatch.setattr(channels, "fit", fit)
    return told


def widths(model):
    return {
        la.name: la.output_shape[-1] for la in model.layers if la.name[:-1] in {"conv", "dense"}
    }


def pruned(task, asked, model=None, **more):
    return prune_channels(model or network(), asked, task, seed=0, **more)[0]


def test_half_of_the_channels_go_and_the_rest_learns(tiny_task):
    model = network()
    before = [weight.copy() for weight in model.get_weights()]
    asked = step(KeepRatio(keep_ratio=0.5), fine_tune=Fit(epochs=12, batch_size=16))
    made, history = keras_step(model, asked, tiny_task, seed=0)
    assert widths(made) == {"conv1": 4, "conv2": 8, "conv3": 4, "dense1": 10, "dense2": 3}
    assert history.epochs[-1]["val_accuracy"] > 0.9
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert epochs_of(asked) == len(history.epochs) == 12
    assert reasons_left_alone(model, asked, made) == {
        "conv1": "keeps 4 of its 8 channels",
        "conv2": "keeps 8 of its 16 channels",
        "conv3": "keeps 4 of its 8 channels",
        "dense1": "keeps 10 of its 20 channels",
        "dense2": "its channels have to stay: they are what the network gives",
    }


def test_rounds_that_are_stopped_go_on_to_the_same_bits(tiny_task, tmp_path):
    asked = step(KeepRatio(keep_ratio=0.25), rounds=2, fine_tune=Fit(epochs=2, batch_size=64))
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)
    heard = []

    def stop(end):
        heard.append((end.epoch, end.epochs))
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pruned(tiny_task, asked, files=files, on_epoch=stop)
    assert heard == [(1, 4), (2, 4), (3, 4)]
    heard += [None]
    resumed, history = prune_channels(
        network(),
        asked,
        tiny_task,
        seed=0,
        files=files,
        on_epoch=lambda end: heard.append((end.epoch, end.last)),
    )
    assert heard[4:] == [(2, False), (4, True)]  # each round goes on from its own last step
    assert [path.name for path in tmp_path.iterdir()] == ["standing.npz"]
    whole, expected = prune_channels(network(), asked, tiny_task, seed=0)
    assert all(
        np.array_equal(*two) for two in zip(whole.get_weights(), resumed.get_weights(), strict=True)
    )
    assert (len(history.epochs), history) == (4, expected)
    assert widths(whole)["conv2"] == 4


def test_every_round_takes_its_part_and_the_last_is_trained_for_longest(tiny_task, untrained):
    asked = step(KeepRatio(keep_ratio=0.25), rounds=2, between=EPOCH, fine_tune=Fit(epochs=5))
    made, history = prune_channels(network(), asked, tiny_task, seed=0)
    assert untrained == [EPOCH, Fit(epochs=5)]
    assert (len(history.epochs), history.kept_epoch, asked.epochs) == (6, 6, 6)
    assert widths(made) == {"conv1": 2, "conv2": 4, "conv3": 2, "dense1": 5, "dense2": 3}


@pytest.mark.parametrize("ranking", ["local", "global"])
@pytest.mark.parametrize(("target", "cost"), [(KeepMacs, macs), (KeepParameters, parameters)])
@pytest.mark.parametrize("ratio", [0.6, 0.1])
@pytest.mark.usefixtures("untrained")
def test_a_target_is_reached_and_hardly_undercut(ratio, target, cost, ranking, tiny_task):
    model = network()
    made = pruned(tiny_task, step(target(keep_ratio=ratio), ranking=ranking), model)
    costs = [cost(coupling, coupling.all_kept()) for coupling in (couple(made), couple(model))]
    assert 0.6 * ratio <= costs[0] / costs[1] <= ratio


@pytest.mark.usefixtures("untrained")
def test_a_latency_is_reached_by_measuring(tiny_task):
    timed = []

    def measure(candidate):
        timed.append(candidate)
        return 16 / widths(candidate)["conv2"]  # as fast as this one layer makes it

    made = pruned(tiny_task, step(Faster(speedup=2.0)), measure=measure)
    assert widths(made)["conv2"] == 8
    assert 1 < len(timed) <= 9


@pytest.mark.usefixtures("untrained")
def test_a_target_out_of_reach_says_what_can_be_reached(tiny_task):
    asked = step(KeepMacs(keep_ratio=0.01), skip=("conv*",))
    with pytest.raises(UserError, match=r"0\.01 of the cost cannot be reached: .* takes 0\.9"):
        pruned(tiny_task, asked)


@pytest.mark.usefixtures("untrained")
def test_widths_land_on_multiples_and_narrow_layers_keep_theirs(tiny_task):
    made = pruned(tiny_task, step(KeepRatio(keep_ratio=0.45), multiple_of=8))
    assert widths(made) == {"conv1": 8, "conv2": 8, "conv3": 8, "dense1": 8, "dense2": 3}


@pytest.mark.usefixtures("untrained")
def test_widths_land_on_the_steps_of_a_machine(tiny_task, tmp_path):
    stairs = {2: 1.0, 3: 5.0, 5: 5.0, 7: 9.0, 12: 9.0}  # worth having: 2, 5 and 12
    path = tmp_path / "widths.json"
    path.write_bytes(msgspec.json.encode(table(stairs)))
    there = WidthsFrom(table=str(path))
    made = pruned(tiny_task, step(KeepRatio(keep_ratio=0.45), widths=there))
    # The table has no dense layers, which may have any width.
    assert widths(made) == {"conv1": 5, "conv2": 5, "conv3": 5, "dense1": 9, "dense2": 3}


@pytest.mark.usefixtures("untrained")
def test_layers_may_be_asked_for_other_shares_or_widths(tiny_task):
    asked = step(per_layer={"conv3": 0.75, "dense1": 1.0}, layer_widths={"conv2": 5})
    made = pruned(tiny_task, asked)
    assert widths(made) == {"conv1": 6, "conv2": 5, "conv3": 6, "dense1": 20, "dense2": 3}
    said = channel_facts(network(), made, asked)
    assert said["dense1"] == "all channels are asked to stay"
    skipped = step(KeepRatio(keep_ratio=0.5), skip=("conv1",))
    made = pruned(tiny_task, skipped)
    assert widths(made)["conv3"] == 8
    said = channel_facts(network(), made, skipped)
    assert said["conv1"] == "'conv1', which goes with it, is skipped: 'conv1'"


@pytest.mark.usefixtures("untrained")
def test_a_global_ranking_takes_where_least_is_lost(tiny_task):
    model = network()
    kernel, bias = model.get_layer("conv2").get_weights()
    kernel[..., 3:] *= 1e-3
    model.get_layer("conv2").set_weights([kernel, bias])
    made = pruned(
        tiny_task, step(KeepRatio(keep_ratio=0.7), criterion="l2", ranking="global"), model
    )
    assert widths(made)["conv2"] == 3
    left = made.get_layer("conv2").get_weights()[0]
    assert np.abs(left).sum(axis=(0, 1, 2)).min() > 0.1  # the three that weigh something


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("keep_ratio", [0.9, 0.8, 0.7])
def test_a_global_ranking_takes_as_many_channels_as_asked_where_several_are_worth_nothing(
    keep_ratio, tiny_task
):
    model = network()
    for name, dead in (("conv2", 8), ("dense1", 10)):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[..., :dead] = 0
        model.get_layer(name).set_weights([kernel, bias])
    left = widths(
        pruned(tiny_task, step(KeepRatio(keep_ratio=keep_ratio), ranking="global"), model)
    )
    assert left["conv1"] == 8
    assert left["conv1"] + left["conv2"] + left["dense1"] == round(keep_ratio * (8 + 16 + 20))


@pytest.mark.usefixtures("untrained")
def test_a_layer_that_begins_with_stored_values_can_be_narrowed(tiny_task):
    values = np.arange(24.0).reshape(8, 3)[:, :3].tolist()
    model = tf_keras.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(8, 3, name="conv"), layers.GlobalMaxPooling2D(),
        layers.Dense(3, kernel_initializer=tf_keras.initializers.Constant(values)),
    ])  # fmt: skip
    made = pruned(tiny_task, step(KeepRatio(keep_ratio=0.5)), model)
    assert made.layers[-1].get_weights()[0].shape == (4, 3)


def test_a_scale_is_asked_only_of_layers_that_may_lose_channels():
    asked = {"criterion": "batch_norm", "target": KeepRatio(keep_ratio=0.5)}
    model = tf_keras.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(4, 3, name="first"), layers.BatchNormalization(),
        layers.Conv2D(4, 3, name="bare"), layers.Flatten(), layers.Dense(3),
    ])  # fmt: skip
    with pytest.raises(UserError, match=r"batch_norm needs a BatchNormalization .* behind bare;"):
        check_channel_names(model, step(**asked))
    check_channel_names(model, step(**asked, skip=("bare",)))


@pytest.mark.usefixtures("untrained")
def test_what_is_skipped_needs_no_scale(tiny_task):
    model = tf_keras.Sequential([
        layers.Input((8, 8, 1)), layers.Conv2D(4, 3, name="conv1"), layers.BatchNormalization(),
        layers.Conv2D(4, 3, name="conv2"), layers.Flatten(), layers.Dense(3),
    ])  # fmt: skip
    asked = step(KeepRatio(keep_ratio=0.5), criterion="batch_norm", skip=("conv2",))
    assert widths(pruned(tiny_task, asked, model)) == {"conv1": 2, "conv2": 4}


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"skip": ("fc*",)}, r"skip: no layer is named 'fc\*'; there are conv1, conv2"),
        ({"per_layer": {"pool": 0.5}}, "per_layer: no layer with channels is named 'pool'"),
        ({"per_layer": {"dense2": 0.5}}, "'dense2' cannot be pruned: its channels have to stay"),
        ({"layer_widths": {"conv1": 9}}, "layer_widths: 'conv1' has 8 channels, got 9"),
        ({"per_layer": {"conv1": 0.5, "conv3": 0.25}}, "'conv1', 'conv3' go together"),
        ({"skip": ("*",)}, r"nothing is left to prune \(.*conv2: skipped"),
        (
            {"target": None, "layer_widths": {"conv1": 8, "conv2": 16}},
            r"nothing is left to prune \(conv1: keeps its channels; .*dense1: nothing is asked of it",
        ),
        ({"widths": WidthsFrom(table="none.json")}, r"none\.json: cannot be read"),
    ],
)
def test_a_step_that_does_not_fit_the_network_is_refused_before_training(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        check_channel_names(network(), step(**{"target": KeepRatio(keep_ratio=0.5)} | fields))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "nothing says what is kept"),
        ({"target": {"kind": "channels", "keep_ratio": 0}}, r"> 0.*target\.keep_ratio"),
        ({"target": {"kind": "latency", "speedup": 1}}, r"> 1.*target\.speedup"),
        ({"per_layer": {"a": 0.5}, "layer_widths": {"a": 4}}, "a: is in per_layer and in layer"),
        (
            {"per_layer": {"a": 0.5}, "widths": {"table": "t.json"}, "multiple_of": 8},
            "leave multiple_of out",
        ),
    ],
)
def test_a_mistake_in_the_step_is_named(fields, complaint):
    with pytest.raises(msgspec.ValidationError, match=complaint):
        msgspec.convert(
            {"kind": "prune_channels", "fine_tune": {"epochs": 1}} | fields, PruneChannels
        )
