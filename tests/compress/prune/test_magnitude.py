import dataclasses
import math
import sys

import msgspec
import numpy as np
import pytest
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.prune.magnitude import (
    Block,
    MagnitudePrune,
    NOfM,
    Rounds,
    _calls,
    _tfmot_schedule,
    magnitude_prune,
    mask_updates,
    sparsity_by_layer,
    why_not_pruned,
    with_budget,
)
from compress.train.fit import EarlyStopping, Fit, TrainingFiles
from compress.train.optimizers import Adam
from compress.train.schedules import Cosine
from deploy.errors import UserError

layers = tf_keras.layers
BRIEFLY = Fit(epochs=2, batch_size=32)


def prune(model, step, task, **settings):
    """Return the pruned model alone, without how it trained."""
    pruned, _ = magnitude_prune(model, step, task, **settings)
    return pruned


@tf_keras.utils.register_keras_serializable("tests")
class Doubling(layers.Layer):
    """A user's own layer, with weights that nobody here knows."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(1, input_shape[-1]), initializer="ones")

    def call(self, inputs):
        return 2 * inputs * self.scale


class Unclonable(layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def call(self, inputs):
        return inputs


def network():
    tf_keras.utils.set_random_seed(7)
    return tf_keras.Sequential(
        [
            layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1), name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.Conv2D(8, 3, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool"),
            layers.Flatten(name="flatten"),
            layers.Dense(16, activation="relu", name="dense1"),
            layers.Dense(3, activation="softmax", name="dense2"),
        ],
        name="tiny",
    )


def functional(middle, *, units=16):
    tf_keras.utils.set_random_seed(7)
    image = tf_keras.Input((8, 8, 1), name="image")
    x = layers.Flatten(name="flatten")(image)
    x = layers.Dense(units, activation="relu", name="dense1")(x)
    x = middle(x)
    return tf_keras.Model(image, layers.Dense(3, activation="softmax", name="classes")(x))


def dense_network():
    return functional(layers.Activation("tanh", name="middle"))


def step(final_sparsity=0.8, **fields):
    return MagnitudePrune(**{"final_sparsity": final_sparsity, "fine_tune": BRIEFLY} | fields)


def zeros(model, name):
    return model.get_layer(name).get_weights()[0] == 0


def same_weights(one, other):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_every_kernel_gets_the_sparsity_asked_for_within_one_weight(tiny_task, schedule):
    asked = step(0.8, schedule=schedule, per_layer={"conv1": 0.35, "dense2": 0.0})
    pruned = prune(network(), asked, tiny_task, seed=0)
    for name, target in {"conv1": 0.35, "conv2": 0.8, "dense1": 0.8}.items():
        mask = zeros(pruned, name)
        assert abs(mask.sum() - target * mask.size) <= 1
    assert sparsity_by_layer(pruned)["dense2"] == 0
    assert sparsity_by_layer(pruned)["conv2"] == pytest.approx(0.8, abs=0.005)
    assert set(sparsity_by_layer(pruned)) == {"conv1", "conv2", "dense1", "dense2"}


def test_pruning_leaves_its_input_alone(tiny_task):
    model = dense_network()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(tiny_task.train.x, tiny_task.train.y, verbose=0)
    weights, optimizer = model.get_weights(), model.optimizer
    variables = [variable.numpy() for variable in optimizer.variables]
    magnitude_prune(model, step(), tiny_task, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert model.optimizer is optimizer
    after = [variable.numpy() for variable in optimizer.variables]
    assert all(np.array_equal(a, b) for a, b in zip(variables, after, strict=True))


@pytest.mark.parametrize("model", [network(), dense_network()])
def test_the_result_is_a_plain_model_with_the_names_of_the_original(tiny_task, model):
    pruned = prune(model, step(), tiny_task, seed=0)
    assert [(x.name, type(x)) for x in pruned.layers] == [(x.name, type(x)) for x in model.layers]
    assert (pruned.name, pruned.input_names) == (model.name, model.input_names)
    assert pruned.output_names == model.output_names
    assert [w.name for w in pruned.weights] == [w.name for w in model.weights]
    assert type(pruned) is type(model)


def test_the_same_seed_gives_the_same_bits(tiny_task):
    first, again = (prune(dense_network(), step(), tiny_task, seed=1) for _ in range(2))
    assert same_weights(first, again)


def test_pruned_weights_stay_zero_while_the_rest_trains_on(tiny_task):
    early = step(0.8, schedule="constant", end=0.0, fine_tune=Fit(epochs=1, batch_size=32))
    longer = msgspec.structs.replace(early, fine_tune=Fit(epochs=3, batch_size=32))
    one = prune(dense_network(), early, tiny_task, seed=0)
    three = prune(dense_network(), longer, tiny_task, seed=0)
    assert np.array_equal(zeros(one, "dense1"), zeros(three, "dense1"))
    assert not same_weights(one, three)


def test_the_weights_that_go_are_the_smallest(tiny_task):
    still = Fit(epochs=1, batch_size=32, optimizer=Adam(learning_rate=1e-9))
    model = dense_network()
    pruned = prune(model, step(0.75, fine_tune=still), tiny_task, seed=0)
    kernel = np.abs(model.get_layer("dense1").get_weights()[0])
    mask = zeros(pruned, "dense1")
    assert kernel[mask].max() <= kernel[~mask].min() + 1e-6


def test_two_of_every_four_input_channels_are_zero_in_the_2_4_pattern(tiny_task):
    asked = step(0.5, schedule="constant", pattern=NOfM())
    pruned = prune(network(), asked, tiny_task, seed=0)
    conv2 = np.moveaxis(zeros(pruned, "conv2"), 2, -1).reshape(-1, 4)
    dense1 = zeros(pruned, "dense1").T.reshape(-1, 4)
    assert (conv2.sum(axis=1) == 2).all()
    assert (dense1.sum(axis=1) == 2).all()
    assert not zeros(pruned, "conv1").any()


def test_block_pruning_zeroes_whole_blocks(tiny_task):
    asked = step(0.75, pattern=Block(height=4, width=2, pooling="max"))
    pruned = prune(network(), asked, tiny_task, seed=0)
    mask = zeros(pruned, "dense1")
    blocks = mask.reshape(mask.shape[0] // 4, 4, 8, 2).sum(axis=(1, 3))
    assert set(np.unique(blocks)) == {0, 8}
    assert abs((blocks == 8).sum() - 0.75 * blocks.size) <= 1
    assert not zeros(pruned, "conv2").any()


def test_a_skipped_layer_keeps_its_weights_full(tiny_task):
    pruned = prune(network(), step(skip=("conv*", "dense2")), tiny_task, seed=0)
    achieved = sparsity_by_layer(pruned)
    assert achieved["conv1"] == achieved["conv2"] == achieved["dense2"] == 0
    assert achieved["dense1"] > 0.79


def test_early_stopping_cannot_bring_back_weights_from_before_the_target(tiny_task):
    # No epoch beats the first that is judged by 0.9, so that one is kept.
    patient = EarlyStopping(metric="val_accuracy", patience=1, min_delta=0.9)
    asked = step(0.9, end=0.5, fine_tune=Fit(epochs=6, batch_size=32, early_stopping=patient))
    ends = []
    pruned = prune(dense_network(), asked, tiny_task, seed=0, on_epoch=ends.append)
    assert sparsity_by_layer(pruned)["dense1"] == pytest.approx(0.9, abs=0.01)
    assert len(ends) == 4  # the third, in which the last choice falls, and one of patience


def test_layers_used_twice_and_layers_of_inner_models_are_pruned_once_each(tiny_task):
    shared = layers.Dense(16, activation="relu", name="shared")
    inner = tf_keras.Sequential(
        [layers.Input((16,)), layers.Dense(16, activation="relu", name="inner1")], name="inner"
    )
    model = functional(lambda x: inner(inner(shared(shared(x)))))
    pruned = prune(model, step(0.8, skip=("dense1", "classes")), tiny_task, seed=0)
    for layer in (pruned.get_layer("shared"), pruned.get_layer("inner").get_layer("inner1")):
        kernel = layer.kernel.numpy()
        assert abs((kernel == 0).sum() - 0.8 * kernel.size) <= 1
    assert set(sparsity_by_layer(pruned)) == {"dense1", "shared", "inner1", "classes"}
    assert dict(_calls(pruned)) == {
        **dict.fromkeys(("image", "flatten", "dense1", "classes"), 1),
        **dict.fromkeys(("shared", "inner1"), 2),
    }


def test_a_layer_used_twice_follows_the_schedule_at_the_pace_of_the_others():
    once, twice = (_tfmot_schedule(step(), "dense1", 100, calls) for calls in (1, 2))
    for training_step in (1, 2, 13, 50, 97):
        turn, sparsity = once(training_step)
        at_calls = [twice(2 * training_step - 1), twice(2 * training_step)]
        assert any(bool(call_turn) for call_turn, _ in at_calls) == bool(turn)
        assert float(at_calls[1][1]) == pytest.approx(float(sparsity), abs=1e-6)


def test_a_custom_layer_is_left_alone_with_the_reason(tiny_task):
    model = functional(Doubling(name="mine"))
    pruned = prune(model, step(), tiny_task, seed=0)
    reason = why_not_pruned(pruned.get_layer("mine"), step())
    assert reason == "layers of type Doubling cannot be pruned"
    assert (pruned.get_layer("mine").scale.numpy() != 0).all()


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("conv2", {}, None),
        ("dense1", {}, None),
        ("bn1", {}, "has no kernel to prune"),
        ("flatten", {}, "has no kernel to prune"),
        ("conv2", {"skip": ("conv[23]",)}, "skipped: 'conv[23]'"),
        ("conv2", {"per_layer": {"conv2": 0.0}}, "no zeros are asked of it"),
        (
            "conv1",
            {"final_sparsity": 0.5, "schedule": "constant", "pattern": NOfM()},
            "its 1 input channels are not a multiple of 4",
        ),
        (
            "conv2",
            {"pattern": Block(height=2, width=2)},
            "a block needs a kernel of two axes, this has 4",
        ),
        (
            "dense2",
            {"pattern": Block(height=4, width=2)},
            "blocks of 4×2 do not tile its 16×3 kernel",
        ),
    ],
)
def test_a_layer_left_alone_has_its_reason(name, fields, reason):
    assert why_not_pruned(network().get_layer(name), step(**fields)) == reason


def test_frozen_layers_models_and_odd_layers_have_their_reasons():
    frozen = network().get_layer("conv2")
    frozen.trainable = False
    assert why_not_pruned(frozen, step()) == "is frozen: trainable = False"
    assert why_not_pruned(network(), step()) == "is a model: its layers are pruned one by one"
    depthwise = layers.DepthwiseConv2D(3)
    depthwise.build((None, 8, 8, 4))
    reason = "layers of type DepthwiseConv2D cannot be pruned"
    assert why_not_pruned(depthwise, step()) == reason
    conv = layers.Conv1D(4, 1)
    conv.build((None, 8, 4))
    asked = step(0.5, schedule="constant", pattern=NOfM())
    assert why_not_pruned(conv, asked) == "layers of type Conv1D have no n_of_m pattern"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"skip": ("fc*",)}, r"skip: no layer is named 'fc\*'; there are conv1, bn1"),
        ({"per_layer": {"fc": 0.5}}, "per_layer: no layer is named 'fc'; there are conv1"),
        (
            {"per_layer": {"bn1": 0.5}},
            "per_layer: 'bn1' cannot be pruned to 0.5: has no kernel to prune",
        ),
        (
            {"per_layer": {"conv1": 0.5}, "skip": ("conv1",)},
            "per_layer: 'conv1' cannot be pruned to 0.5: skipped",
        ),
        ({"final_sparsity": 0.0}, "nothing is left to prune .*dense1: no zeros are asked of it"),
        ({"skip": ("*",)}, r"nothing is left to prune .*dense1: skipped: '\*'"),
    ],
)
def test_a_step_that_does_not_fit_the_model_is_refused(tiny_task, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        magnitude_prune(network(), step(**fields), tiny_task, seed=0)


def test_a_final_sparsity_of_zero_prunes_only_the_layers_that_are_named(tiny_task):
    pruned = prune(dense_network(), step(0.0, per_layer={"dense1": 0.5}), tiny_task, seed=0)
    assert {n: round(s, 2) for n, s in sparsity_by_layer(pruned).items() if s} == {"dense1": 0.5}


def test_weights_that_cannot_be_told_apart_are_refused(tiny_task):
    model = functional(layers.Activation("tanh"), units=8)
    kernel, bias = model.get_layer("dense1").get_weights()
    model.get_layer("dense1").set_weights([np.full_like(kernel, 0.5), bias])
    blind = dataclasses.replace(
        tiny_task, train=dataclasses.replace(tiny_task.train, x=0 * tiny_task.train.x)
    )
    with pytest.raises(UserError, match="'dense1' has 0 zeros in 512 weights where 410 were asked"):
        magnitude_prune(model, step(), blind, seed=0)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (lambda: functional(Unclonable(object())), "cannot be copied layer by layer: .*get_config"),
        (
            lambda: functional(tf_keras.Sequential([layers.Dense(16, name="dense1")])),
            "several layers are named dense1",
        ),
    ],
)
def test_a_model_that_cannot_be_pruned_is_refused(tiny_task, model, complaint):
    with pytest.raises(UserError, match=complaint):
        magnitude_prune(model(), step(), tiny_task, seed=0)


def test_a_model_without_an_input_shape_is_refused(tiny_task):
    model = tf_keras.Sequential([layers.Flatten(), layers.Dense(3, activation="softmax")])
    with pytest.raises(UserError, match="has no known input shape; begin it with an Input"):
        magnitude_prune(model, step(), tiny_task, seed=0)


def decode(**fields):
    settings = {"kind": "magnitude_prune", "final_sparsity": 0.5, "fine_tune": {"epochs": 2}}
    return msgspec.convert(settings | fields, MagnitudePrune)


def test_the_line_of_the_design_decodes():
    asked = decode(final_sparsity=0.9, schedule="polynomial", skip=["conv1"])
    assert (asked.final_sparsity, asked.skip) == (0.9, ("conv1",))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"final_sparsity": 1.5}, r"< 1.*\$\.final_sparsity"),
        ({"final_sparsity": 1.0}, r"< 1.*\$\.final_sparsity"),
        ({"per_layer": {"conv1": -0.1}}, r">= 0.*\$\.per_layer"),
        ({"begin": 0.6, "end": 0.5}, r"begin must not exceed end \(0\.5\), got 0\.6"),
        ({"schedule": "constant", "power": 2.0}, "belong to the schedule 'polynomial'"),
        ({"initial_sparsity": 0.6}, r"final_sparsity: must not be below initial_sparsity \(0\.6\)"),
        (
            {"initial_sparsity": 0.3, "per_layer": {"conv1": 0.2}},
            r"conv1: must not be below initial_sparsity \(0\.3\), got 0\.2",
        ),
        ({"pattern": {"kind": "n_of_m"}}, "set schedule = 'constant' and begin = 0"),
        (
            {"pattern": {"kind": "n_of_m"}, "schedule": "constant", "final_sparsity": 0.9},
            r"final_sparsity: 2 of 4 is exactly 0\.5, got 0\.9",
        ),
        ({"pattern": {"kind": "n_of_m", "zeros": 4}}, r"zeros must be below of \(4\), got 4"),
        ({"pattern": {"kind": "2:4"}}, r"2:4.*\$\.pattern"),
        ({"sparsity": 0.5}, "unknown field `sparsity`"),
    ],
)
def test_a_mistake_in_the_step_is_named_with_its_place(fields, complaint):
    with pytest.raises(msgspec.ValidationError, match=complaint):
        decode(**fields)


@settings(max_examples=300, deadline=None)
@given(
    fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    epochs=st.integers(1, 20),
    steps_per_epoch=st.integers(1, 2000),
    updates_per_epoch=st.integers(1, 100),
)
def test_mask_updates_stay_between_begin_and_end_and_include_the_last(
    fractions, epochs, steps_per_epoch, updates_per_epoch
):
    begin, end = fractions
    asked = step(
        begin=begin, end=end, updates_per_epoch=updates_per_epoch, fine_tune=Fit(epochs=epochs)
    )
    first, last, distance = mask_updates(asked, steps_per_epoch)
    steps = epochs * steps_per_epoch
    assert 1 <= first <= last <= steps
    assert (last - first) % distance == 0
    assert first == max(1, round(begin * steps))
    assert last > max(first, round(end * steps)) - distance or math.isclose(begin, end)


def test_step_settings_survive_the_way_through_json():
    asked = step(0.5, pattern=Block(height=1, width=8), per_layer={"conv1": 0.1}, skip=("bn*",))
    assert msgspec.json.decode(msgspec.json.encode(asked), type=MagnitudePrune) == asked


def zeros_in_all(model, *names):
    masks = [zeros(model, name) for name in names]
    return sum(mask.sum() for mask in masks), sum(mask.size for mask in masks)


@pytest.mark.parametrize("budget", ["global", "lamp", "sensitivity"])
def test_a_budget_is_met_by_all_layers_together_to_the_weight(tiny_task, budget):
    asked = step(0.9, budget=budget, fine_tune=Fit(epochs=1, batch_size=96))
    pruned = prune(network(), asked, tiny_task, seed=0)
    found, weights = zeros_in_all(pruned, "conv1", "conv2", "dense1", "dense2")
    assert found == round(0.9 * weights)
    assert len({round(share, 2) for share in sparsity_by_layer(pruned).values()}) > 1


def test_layers_with_targets_of_their_own_are_not_part_of_a_budget(tiny_task):
    asked = step(0.8, budget="lamp", per_layer={"dense1": 0.5}, skip=("conv1",))
    decided = with_budget(network(), asked, tiny_task)
    assert decided.per_layer["dense1"] == 0.5
    assert set(decided.per_layer) == {"dense1", "conv2", "dense2"}
    sizes = {"conv2": 288, "dense2": 48}
    asked_zeros = sum(decided.per_layer[name] * size for name, size in sizes.items())
    assert asked_zeros == pytest.approx(round(0.8 * 336))


ROUNDS = Fit(epochs=6, batch_size=32, schedule=Cosine())


@pytest.mark.parametrize(
    "rounds", [Rounds(count=3), Rounds(count=2, rewind="weights", to_epoch=1)], ids=str
)
def test_rounds_end_at_the_sparsity_asked_for(tiny_task, rounds):
    asked = step(0.9, rounds=rounds, fine_tune=ROUNDS, per_layer={"conv1": 0.5})
    pruned = prune(network(), asked, tiny_task, seed=0)
    for name, target in {"conv1": 0.5, "conv2": 0.9, "dense1": 0.9}.items():
        mask = zeros(pruned, name)
        assert mask.sum() == round(target * mask.size)


def watched(monkeypatch):
    """Return a list that fills with the model's weights as each training step begins and as it ends."""
    seen = []
    magnitude = sys.modules["compress.prune.magnitude"]
    original = magnitude.fit

    def spying(model, *arguments, callbacks, **named):
        def note(_batch, logs):
            stripped = [w.numpy() for w in model.weights if "rewound" not in w.name]
            optimizer = [variable.numpy() for variable in model.optimizer.variables[2:]]
            seen.append((stripped, optimizer))

        spy = tf_keras.callbacks.LambdaCallback(on_batch_begin=note, on_batch_end=note)
        return original(model, *arguments, callbacks=[*callbacks, spy], **named)

    monkeypatch.setattr(magnitude, "fit", spying)
    return seen


def test_rewinding_brings_back_the_weights_of_that_epoch_bit_for_bit(tiny_task, monkeypatch):
    seen = watched(monkeypatch)
    rounds = Rounds(count=2, rewind="weights", to_epoch=1)
    prune(dense_network(), step(0.75, rounds=rounds, fine_tune=ROUNDS), tiny_task, seed=0)
    steps = 6  # of an epoch; each of three parts has two
    then, _ = seen[2 * steps]  # as the second epoch begins
    for part in (1, 2):
        now, optimizer = seen[2 * 2 * steps * part]
        rewound = [a for a in now if a.dtype == np.float32 and a.size > 1]
        before = [a for a in then if a.dtype == np.float32 and a.size > 1]
        share = 1 - 0.25 ** (part / 2)
        for old, new in zip(before, rewound, strict=True):
            stays = new != 0
            if set(np.unique(new)) <= {0, 1}:  # the masks
                continue
            assert np.array_equal(old[stays], new[stays])
            if old.ndim > 1:
                assert np.sum(~stays) == round(share * old.size)
        assert all(not state.any() for state in optimizer)


def test_learning_rate_rewinding_keeps_the_weights_and_begins_the_rate_anew(tiny_task):
    ends = []
    asked = step(0.75, rounds=Rounds(count=3), fine_tune=ROUNDS)
    magnitude_prune(dense_network(), asked, tiny_task, seed=0, on_epoch=ends.append)
    rates = [end.learning_rate for end in ends]
    assert rates == pytest.approx(3 * rates[:2])
    assert rates[0] > 2 * rates[1]


def test_the_weights_that_a_round_takes_stay_zero_and_those_it_leaves_go_on(tiny_task, monkeypatch):
    seen = watched(monkeypatch)
    asked = step(0.75, rounds=Rounds(count=3), fine_tune=ROUNDS)
    pruned = prune(dense_network(), asked, tiny_task, seed=0)
    before, after = seen[2 * 2 * 6 - 1][0][0], seen[2 * 2 * 6][0][0]  # the first kernel
    assert np.array_equal(before[after != 0], after[after != 0])
    assert zeros(pruned, "dense1")[after == 0].all()


@pytest.mark.parametrize(
    "rounds", [Rounds(count=3), Rounds(count=2, rewind="weights", to_epoch=1)], ids=str
)
def test_rounds_that_were_killed_go_on_to_the_same_bits(tiny_task, tmp_path, rounds):
    asked = step(0.75, rounds=rounds, fine_tune=ROUNDS)
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)

    def stop(end):
        if end.epoch == 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prune(dense_network(), asked, tiny_task, seed=0, files=files, on_epoch=stop)
    seen = []
    resumed = prune(dense_network(), asked, tiny_task, seed=0, files=files, on_epoch=seen.append)
    assert [end.epoch for end in seen] == [4, 5, 6]  # 5 begins the last round
    assert same_weights(resumed, prune(dense_network(), asked, tiny_task, seed=0))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"rounds": {"count": 3}}, r"fine_tune.epochs must be a multiple of 3, .*, got 2"),
        (
            {"rounds": {"count": 1, "rewind": "weights", "to_epoch": 1}},
            r"rounds\.to_epoch must be below the 1 epochs of a part, got 1",
        ),
        ({"rounds": {"count": 2}, "begin": 0.1}, "rounds say when weights go: leave schedule"),
        (
            {"rounds": {"count": 2}, "pattern": {"kind": "block", "height": 1, "width": 2}},
            "rounds take single weights: leave pattern out",
        ),
        (
            {
                "rounds": {"count": 2},
                "fine_tune": {"epochs": 2, "schedule": {"kind": "exponential"}},
            },
            "rounds begin the learning rate anew: .* got Exponential",
        ),
        ({"budget": "lamp", "initial_sparsity": 0.1}, "budget 'lamp' counts single weights"),
        ({"budget": "erk"}, r"erk.*\$\.budget"),
    ],
)
def test_a_mistake_in_rounds_or_budget_is_named(fields, complaint):
    with pytest.raises(msgspec.ValidationError, match=complaint):
        decode(**fields)
