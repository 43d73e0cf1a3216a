"""What a criterion calls worthless is worthless."""

import dataclasses

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

from compress.data.task import Split
from compress.prune.coupling import couple
from compress.prune.criteria import CRITERIA, comparable, scores
from compress.prune.groups import narrowed


def network():
    """Return a network whose third channel of ``first`` is next to nothing, wherever one looks."""
    inputs = layers.Input((8, 8, 1))
    x = layers.Conv2D(6, 3, name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(inputs, layers.Dense(3, activation="softmax", name="last")(x))
    rng = np.random.default_rng(0)
    for layer in (model.get_layer("first"), model.get_layer("last")):
        kernel, bias = layer.get_weights()
        layer.set_weights([rng.normal(size=kernel.shape), bias])
    kernel, bias = model.get_layer("first").get_weights()
    kernel[..., 2] *= 1e-3
    model.get_layer("first").set_weights([kernel, bias])
    norm = model.get_layer("norm").get_weights()
    norm[0][2] = 1e-3
    model.get_layer("norm").set_weights(norm)
    return model


def worth(model, criterion, task, seed=0):
    coupling = couple(model)
    (found,) = scores(coupling, criterion, task, seed=seed, samples=64).values()
    return found


@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
def test_every_criterion_but_chance_finds_the_channel_that_adds_nothing(criterion, tiny_task):
    found = worth(network(), criterion, tiny_task)
    assert found.shape == (6,)
    assert np.isfinite(found).all()
    assert found.argmin() == 2


def test_chance_draws_from_the_seed_and_looks_at_nothing(tiny_task):
    one, same, other = (worth(network(), "random", tiny_task, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_channel_in_the_middle_of_the_others_is_the_one_they_can_replace(tiny_task):
    model = tf_keras.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(3, 1, name="first"),
                                 layers.GlobalAveragePooling2D(), layers.Dense(3)])  # fmt: skip
    model.layers[0].set_weights([np.array([[[[1.0, 9.0, 4.0]]]]), np.zeros(3)])
    assert np.allclose(worth(model, "geometric_median", tiny_task), [11, 13, 8])
    assert np.allclose(worth(model, "l1", tiny_task), [1, 9, 4])


def test_channels_that_go_together_are_judged_together(tiny_task):
    inputs = layers.Input((8, 8, 1))
    branches = [layers.Conv2D(2, 1, name=name)(inputs) for name in ("one", "other")]
    x = layers.GlobalAveragePooling2D()(layers.Add()(branches))
    model = tf_keras.Model(inputs, layers.Dense(3)(x))
    for name, kernel in (("one", [3.0, 1.0]), ("other", [1.0, 7.0])):
        model.get_layer(name).set_weights([np.reshape(kernel, (1, 1, 1, 2)), np.zeros(2)])
    assert np.allclose(worth(model, "l2", tiny_task), [2, 4])


def test_the_scale_of_a_normalisation_is_what_its_channels_are_worth(tiny_task):
    model = tf_keras.Sequential([layers.Input((8, 8, 1)), layers.Conv2D(3, 1, name="first"),
                                 layers.BatchNormalization(), layers.GlobalAveragePooling2D(),
                                 layers.Dense(3)])  # fmt: skip
    _, *others = model.layers[1].get_weights()
    model.layers[1].set_weights([np.array([0.5, -2.0, 1.0]), *others])
    assert np.allclose(worth(model, "batch_norm", tiny_task), [0.5, 2, 1])


def test_an_activation_is_what_is_read_of_a_channel_over_all_places_and_samples(tiny_task):
    """The first channel is the sample itself, the second −3 everywhere, cut off; the third twice it."""
    model = tf_keras.Sequential([layers.Input((8, 8, 1)),
                                 layers.Conv2D(3, 1, activation="relu", name="first"),
                                 layers.Flatten(), layers.Dense(3)])  # fmt: skip
    model.layers[0].set_weights([np.array([[[[1.0, 0.0, 2.0]]]]), np.array([0.0, -3.0, 0.0])])
    first, second, third = worth(model, "activation", tiny_task)
    x = np.maximum(np.asarray(tiny_task.train.x, np.float64), 0)
    assert second == 0
    assert third == pytest.approx(2 * first)
    assert x.min() <= first <= x.max()


def test_norms_are_compared_between_groups_as_shares_of_their_mean(tiny_task):
    coupling = couple(network())
    found = scores(coupling, "l2", tiny_task, seed=0, samples=8)
    (shares,) = comparable(found, "l2").values()
    assert np.isclose(shares.mean(), 1)
    assert comparable(found, "taylor") is found


def one_batch(part):
    """Return a few samples, which Taylor's criterion looks at all at once."""
    return Split(raw=part.raw[:16], x=part.x[:16], y=part.y[:16])


def loss_without(coupling, unit, task):
    """Return the loss of a network on the samples that criteria see, without one of its units."""
    keep = coupling.all_kept()
    keep[[] if unit is None else unit] = False
    answers = np.asarray(narrowed(coupling, keep)(task.train.x))
    return -np.log(answers[np.arange(len(answers)), task.train.y]).mean()


def test_taylor_is_the_square_of_what_the_loss_changes_by_where_little_changes(tiny_task):
    task = dataclasses.replace(tiny_task, train=one_batch(tiny_task.train))
    model = network()
    # A constant of the normalisation is gone with the channel, too.
    model.get_layer("norm").beta.assign([0.5, 0.2, 0.1, 3.0, 1.0, 0.7])
    kernel, bias = model.get_layer("last").get_weights()
    model.get_layer("last").set_weights([kernel * 1e-3, bias])
    coupling = couple(model)
    (group,) = coupling.groups
    whole = loss_without(coupling, None, task)
    changes = [loss_without(coupling, unit, task) - whole for unit in group.units]
    found = worth(model, "taylor", task)
    assert np.allclose(found, np.square(changes), rtol=0.05)
