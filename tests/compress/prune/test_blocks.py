"""Residual blocks that go, and those that have to stay."""

import msgspec
import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.networks import ResNet8, build
from compress.prune import blocks
from compress.prune.blocks import (
    Block,
    PruneBlocks,
    block_facts,
    check_blocks,
    prune_blocks,
    residual_blocks,
    without,
)
from compress.steps import (
    as_carried_out,
    distillation_of,
    epochs_of,
    keras_step,
    reasons_left_alone,
)
from compress.train.fit import Fit, History, TrainingFiles
from deploy.errors import UserError

EPOCH = Fit(epochs=1, batch_size=64)


def conv(filters, name, **more):
    return layers.Conv2D(filters, 3, padding="same", name=name, **more)


def two_blocks(seed=0, channels=4):
    """Return a network of a stem, two residual blocks ``add1`` and ``add2``, and a head."""
    tf_keras.utils.set_random_seed(seed)
    inputs = layers.Input((8, 8, 1))
    x = layers.ReLU(name="relu0")(conv(channels, "stem")(inputs))
    for n in (1, 2):
        y = conv(channels, f"b{n}", bias_initializer="normal")(
            layers.ReLU(name=f"mid{n}")(conv(6, f"a{n}")(x))
        )
        x = layers.ReLU(name=f"relu{n}")(layers.Add(name=f"add{n}")([y, x] if n == 1 else [x, y]))
    x = layers.Flatten(name="flat")(x)
    return tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="dense")(x))


def step(**fields):
    return PruneBlocks(**{"fine_tune": EPOCH, "distill": False} | fields)


def answers(model, seed=1):
    x = np.random.default_rng(seed).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    return np.asarray(model(x, training=False))


def named(model):
    return [layer.name for layer in model.layers]


@pytest.fixture
def untrained(monkeypatch):
    """Leave the training out, and tell what it was asked for."""
    asked = []

    def fit(model, task, config, **more):
        asked.append((model, task, config, more))
        return History(epochs=({},), kept_epoch=1)

    monkeypatch.setattr(blocks, "fit", fit)
    return asked


def test_the_blocks_of_a_network_are_found_with_all_that_lies_in_them():
    found, reasons = residual_blocks(two_blocks())
    assert found == [
        Block(name="add1", layers=("a1", "mid1", "b1"), shortcut=1, repeated="relu1"),
        Block(name="add2", layers=("a2", "mid2", "b2"), shortcut=0, repeated="relu2"),
    ]
    assert reasons == {}


def test_without_a_block_a_network_answers_as_one_whose_block_gives_zeros():
    for gone in (["add1"], ["add2"], ["add1", "add2"]):
        model = two_blocks()
        small = without(model, [b for b in residual_blocks(model)[0] if b.name in gone])
        for name in gone:
            last = model.get_layer(name.replace("add", "b"))
            last.set_weights([np.zeros_like(w) for w in last.get_weights()])
        np.testing.assert_allclose(answers(small), answers(model), rtol=0, atol=1e-6)
        assert not {*gone, *(n.replace("add", "relu") for n in gone)} & {*named(small)}


@pytest.mark.usefixtures("untrained")
def test_the_network_that_is_given_stays_as_it_is_and_shares_nothing(tiny_task):
    model = two_blocks()
    before = [weight.copy() for weight in model.get_weights()]
    made, _ = prune_blocks(model, step(blocks=("add1",)), tiny_task, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert not {id(layer) for layer in made.layers} & {id(layer) for layer in model.layers}


def test_what_is_left_learns_and_says_what_is_gone(tiny_task):
    model, asked = two_blocks(), step(count=1, fine_tune=Fit(epochs=12, batch_size=16))
    made, history = keras_step(model, asked, tiny_task, seed=0)
    assert history.epochs[-1]["val_accuracy"] > 0.9
    assert epochs_of(asked) == len(history.epochs) == 12
    assert made.count_params() < model.count_params()
    gone = "add2" if "add1" in named(made) else "add1"
    behind = {"add1": "a2", "add2": "dense"}[gone]
    n = gone[-1]
    assert reasons_left_alone(model, asked, made) == {
        behind: f"without {gone} (a{n}, mid{n}, b{n}, relu{n}) before it"
    }
    done = as_carried_out(asked, model, made)
    assert done == msgspec.structs.replace(asked, blocks=(gone,), count=None)
    assert as_carried_out(done, model, made) == done
    assert distillation_of(PruneBlocks(fine_tune=EPOCH, count=1)) is not None


def test_count_takes_no_block_that_only_the_shortened_network_has(tiny_task):
    """Of two branches that are added to one tensor, the second ends a block once the first is gone."""
    inputs = layers.Input(tiny_task.input_shape)
    x = conv(2, "stem")(inputs)
    second = layers.Add(name="second")(
        [layers.Add(name="first")([x, conv(2, "p")(x)]), conv(2, "q")(x)]
    )
    y = layers.Add(name="third")([second, conv(2, "c")(second)])
    classes = len(tiny_task.labels)
    head = layers.Dense(classes, activation="softmax", name="dense")(layers.Flatten()(y))
    model = tf_keras.Model(inputs, head)
    # Little is lost without the two branches, much without the last block.
    for name in ("p", "q"):
        layer = model.get_layer(name)
        layer.set_weights([np.zeros_like(w) for w in layer.get_weights()])
    asked = step(count=2)
    made, _ = keras_step(model, asked, tiny_task, seed=0)
    assert {"second", "q"} <= {*named(made)}
    assert not {"first", "p", "third", "c"} & {*named(made)}
    done = as_carried_out(asked, model, made)
    assert done.blocks == ("first", "third")
    assert named(keras_step(model, done, tiny_task, seed=0)[0]) == named(made)


def test_a_layer_behind_two_blocks_that_went_tells_of_both():
    model = two_blocks()
    small = without(model, residual_blocks(model)[0])
    assert block_facts(model, small) == {
        "dense": "without add1 (a1, mid1, b1, relu1) before it; "
        "without add2 (a2, mid2, b2, relu2) before it"
    }


def test_a_block_that_nothing_with_weights_reads_is_told_of_too():
    inputs = layers.Input((4, 4, 2))
    x = conv(2, "stem")(inputs)
    model = tf_keras.Model(inputs, layers.Add(name="add")([x, conv(2, "a")(x)]))
    small = without(model, residual_blocks(model)[0])
    assert block_facts(model, small) == {"stem": "without add (a) behind it"}


def test_of_a_network_that_has_no_weights_left_nothing_is_said():
    inputs = layers.Input((4, 4, 2))
    model = tf_keras.Model(inputs, layers.Add(name="add")([inputs, conv(2, "a")(inputs)]))
    assert block_facts(model, without(model, residual_blocks(model)[0])) == {}


def test_what_trains_is_told_all_that_the_step_was(untrained, tiny_task):
    more = {"teacher": object(), "on_epoch": print, "files": TrainingFiles(key="k")}
    made, _ = prune_blocks(two_blocks(), step(blocks=("add1",)), tiny_task, seed=5, **more)
    assert untrained == [(made, tiny_task, EPOCH, {"seed": 5, **more})]


@pytest.mark.usefixtures("untrained")
def test_count_looks_at_as_many_samples_as_it_is_asked_to(tiny_task, monkeypatch):
    asked, real = [], blocks.some_samples

    def some_samples(task, samples, seed):
        asked.append((samples, seed))
        return real(task, samples, seed)

    monkeypatch.setattr(blocks, "some_samples", some_samples)
    prune_blocks(two_blocks(), step(count=2, samples=33), tiny_task, seed=7)
    assert asked == [(33, 7)] * 2


@pytest.mark.usefixtures("untrained")
def test_a_block_without_which_there_are_numbers_again_goes(tiny_task):
    for broken in (1, 2):
        model = two_blocks()
        last = model.get_layer(f"b{broken}")
        last.set_weights([np.full_like(w, np.nan) for w in last.get_weights()])
        made, _ = prune_blocks(model, step(count=1), tiny_task, seed=0)
        assert f"add{broken}" not in named(made)


def test_an_unbuilt_network_is_refused(tiny_task):
    unbuilt = tf_keras.Sequential([layers.Dense(3)])
    with pytest.raises(UserError, match="has no known input shape"):
        prune_blocks(unbuilt, step(count=1), tiny_task, seed=0)


def test_a_network_that_is_no_graph_is_refused(tiny_task):
    class Own(tf_keras.Model):
        def call(self, x):
            return x

    own = Own()
    own(np.zeros((1, 8, 8, 1), np.float32))
    with pytest.raises(UserError, match="is no graph of layers"):
        prune_blocks(own, step(count=1), tiny_task, seed=0)


@pytest.mark.usefixtures("untrained")
def test_count_takes_the_block_that_does_nothing(tiny_task):
    for idle in (1, 2):
        model = two_blocks()
        other = model.get_layer(f"b{3 - idle}")
        other.set_weights([50 * w for w in other.get_weights()])
        last = model.get_layer(f"b{idle}")
        last.set_weights([np.zeros_like(w) for w in last.get_weights()])
        # The labels are what the network says, so that only its own answers have no loss.
        wanted = np.asarray(model(tiny_task.train.x)).argmax(axis=1)
        train = tiny_task.train.__class__(raw=tiny_task.train.raw, x=tiny_task.train.x, y=wanted)
        task = tiny_task.__class__(
            **{f: getattr(tiny_task, f) for f in tiny_task.__dataclass_fields__} | {"train": train}
        )
        made, _ = prune_blocks(model, step(count=1), task, seed=0)
        assert f"add{idle}" not in named(made)
        assert f"add{3 - idle}" in named(made)


@pytest.mark.usefixtures("untrained")
def test_two_blocks_go_one_after_the_other(tiny_task):
    made, _ = prune_blocks(two_blocks(), step(count=2), tiny_task, seed=0)
    assert named(made)[1:] == ["stem", "relu0", "flat", "dense"]


@pytest.mark.usefixtures("untrained")
def test_blocks_of_models_inside_the_model_go_by_their_long_names(tiny_task):
    inner = two_blocks()
    inputs = layers.Input((8, 8, 1))
    outer = tf_keras.Model(inputs, inner(inputs))
    made, _ = prune_blocks(outer, step(blocks=(f"{inner.name}/*1",)), tiny_task, seed=0)
    assert f"{inner.name}/add1" not in named(made)
    assert f"{inner.name}/add2" in named(made)


def test_of_resnet_8_only_the_first_block_can_go():
    model = build(ResNet8(), input_shape=(28, 28, 1), classes=10, seed=0)
    (block,), reasons = residual_blocks(model)
    assert block.layers == ("conv2", "bn2", "relu2", "conv3", "bn3")
    assert block.repeated == "relu3"
    assert set(reasons) == {"add2", "add3"}
    assert "as where a shortcut has layers" in reasons["add2"]


def test_a_block_inside_a_block_goes_with_it():
    inputs = layers.Input((4, 4, 2))
    y = conv(2, "a")(inputs)
    y = layers.Add(name="inner")([y, conv(2, "b")(y)])
    x = layers.Add(name="outer")([inputs, y])
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    inner, outer = residual_blocks(model)[0]
    assert outer.layers == ("a", "b", "inner")
    small = without(model, [inner, outer])
    assert not {"a", "b", "inner", "outer"} & {*named(small)}
    assert list(block_facts(model, small).values()) == ["without outer (a, b, inner) before it"]
    assert as_carried_out(step(count=2), model, small).blocks == ("outer",)
    with pytest.raises(UserError, match="count: 1 residual blocks can go, got 2; there are inner"):
        check_blocks(model, step(count=2))


def tapped():
    inputs = layers.Input((4, 4, 2))
    y = conv(2, "a")(inputs)
    x = layers.Add(name="add")([inputs, conv(2, "b")(y)])
    return tf_keras.Model(inputs, layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(y)]))


def tapped_as_output():
    inputs = layers.Input((4, 4, 2))
    y = conv(2, "a")(inputs)
    return tf_keras.Model(inputs, [layers.Add(name="add")([inputs, y]), y])


def shared():
    inputs, twice = layers.Input((4, 4, 2)), conv(2, "a")
    x = layers.Add(name="add")([inputs, twice(inputs)])
    return tf_keras.Model(inputs, twice(x))


def of_three():
    inputs = layers.Input((4, 4, 2))
    both = [inputs, conv(2, "a")(inputs), conv(2, "b")(inputs)]
    return tf_keras.Model(inputs, layers.Add(name="add")(both))


def called_twice():
    inputs, add = layers.Input((4, 4, 2)), layers.Add(name="add")
    x = add([inputs, conv(2, "a")(inputs)])
    return tf_keras.Model(inputs, add([x, conv(2, "b")(x)]))


def of_itself():
    inputs = layers.Input((4, 4, 2))
    return tf_keras.Model(inputs, layers.Add(name="add")([inputs, inputs]))


def of_two_inputs():
    inputs = [layers.Input((4, 4, 2)), layers.Input((4, 4, 2))]
    return tf_keras.Model(inputs, layers.Add(name="add")(inputs))


def spread():
    inputs = layers.Input((1, 1, 2))
    y = conv(2, "a")(layers.UpSampling2D(4)(inputs))
    return tf_keras.Model(inputs, layers.Add(name="add")([inputs, y]))


def with_states():
    inputs = layers.Input((4, 2))
    y, *_ = layers.LSTM(2, return_sequences=True, return_state=True, name="a")(inputs)
    return tf_keras.Model(inputs, layers.Add(name="add")([inputs, y]))


def by_operator():
    inputs = layers.Input((4, 4, 2))
    x = inputs + conv(2, "a")(inputs)
    return tf_keras.Model(inputs, x)


def of_ones_own():
    class Add(layers.Layer):
        def call(self, pair):
            return 3 * pair[0] - pair[1]

    inputs = layers.Input((4, 4, 2))
    return tf_keras.Model(inputs, Add(name="add")([inputs, conv(2, "a")(inputs)]))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (spread, "spreads what its block was given over another shape"),
        (with_states, "'a' in its block gives 3 tensors"),
        (tapped, "'a' in its block is read outside of it too"),
        (tapped_as_output, "'a' in its block is read outside of it too"),
        (shared, "'a' in its block is called elsewhere too"),
        (of_three, "adds 3 tensors"),
        (called_twice, "is called more than once"),
        (of_itself, "neither of its tensors is made from the other alone"),
        (of_two_inputs, "neither of its tensors is made from the other alone"),
    ],
)
def test_a_block_that_others_need_stays_and_says_why(network, reason):
    found, reasons = residual_blocks(network())
    assert found == []
    assert reason in reasons["add"]


def test_what_adds_without_an_add_layer_is_no_block_and_a_plus_is_told_of():
    assert residual_blocks(of_ones_own()) == ([], {})
    found, reasons = residual_blocks(by_operator())
    assert found == []
    assert list(reasons.values()) == ["adds by +; write layers.Add()([x, y])"]


@pytest.mark.parametrize(
    ("before", "behind", "repeated"),
    [
        (layers.ReLU(), layers.ReLU(name="behind"), True),
        (layers.Activation("relu"), layers.ReLU(name="behind"), True),
        (layers.ReLU(6.0), layers.Activation("relu6", name="behind"), True),
        (layers.ReLU(), layers.ReLU(6.0, name="behind"), False),
        (layers.ReLU(threshold=1.0), layers.ReLU(threshold=1.0, name="behind"), False),
        (layers.ReLU(negative_slope=0.1), layers.ReLU(negative_slope=0.1, name="behind"), False),
        (layers.Activation("tanh"), layers.Activation("tanh", name="behind"), False),
        (layers.ReLU(), conv(2, "behind", activation="relu"), False),
    ],
)
def test_an_activation_goes_along_only_where_it_has_nothing_left_to_do(before, behind, repeated):
    inputs = layers.Input((4, 4, 2))
    x = before(conv(2, "stem")(inputs))
    x = behind(layers.Add(name="add")([x, conv(2, "a")(x)]))
    (block,), _ = residual_blocks(tf_keras.Model(inputs, x))
    assert block.repeated == ("behind" if repeated else None)


class Last(layers.Layer):
    """Ends in a convolution, and has an activation before it."""

    def __init__(self, **more):
        super().__init__(**more)
        self.activation = tf_keras.activations.relu
        self.conv = conv(2, "own")

    def call(self, x):
        return self.conv(self.activation(x))


def test_a_layer_of_ones_own_with_an_activation_may_end_in_something_else():
    inputs = layers.Input((4, 4, 2))
    x = Last()(inputs)
    x = layers.ReLU(name="behind")(layers.Add(name="add")([x, conv(2, "a")(x)]))
    (block,), _ = residual_blocks(tf_keras.Model(inputs, x))
    assert block.repeated is None


def test_an_activation_that_is_called_elsewhere_too_stays():
    inputs, relu = layers.Input((4, 4, 2)), layers.ReLU(name="behind")
    x = relu(conv(2, "stem")(inputs))
    x = relu(layers.Add(name="add")([x, conv(2, "a")(x)]))
    (block,), _ = residual_blocks(tf_keras.Model(inputs, x))
    assert block.repeated is None


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"blocks": ("add3",)}, "blocks: no residual block that can go is named 'add3'; there are add1"),
        ({"count": 3}, "count: 2 residual blocks can go, got 3; there are add1, add2"),
    ],
)  # fmt: skip
def test_blocks_that_are_not_there_are_refused_before_any_training(fields, says, tiny_task):
    with pytest.raises(UserError, match=says):
        check_blocks(two_blocks(), step(**fields))
    with pytest.raises(UserError, match=says):
        prune_blocks(two_blocks(), step(**fields), tiny_task, seed=0)


def test_a_network_without_blocks_says_so():
    plain = tf_keras.Sequential([layers.Input((4,)), layers.Dense(3)])
    with pytest.raises(UserError, match=r"there are none$"):
        check_blocks(plain, step(count=1))


@pytest.mark.parametrize("fields", [{}, {"blocks": ("add1",), "count": 1}])
def test_a_step_says_either_which_or_how_many(fields):
    with pytest.raises(ValueError, match="give either blocks, by name, or count"):
        step(**fields)
