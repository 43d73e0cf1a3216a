"""A network that learns from the baseline."""

import msgspec
import numpy as np
import pytest
import tf_keras

from compress.networks import Mlp
from compress.prune.distill import Distill, distill
from compress.recipe import parse_recipe
from compress.steps import check_layer_names, distillation_of, epochs_of, keras_step
from compress.train.fit import Fit
from compress.train.teacher import Distillation
from deploy.errors import UserError

layers = tf_keras.layers
BRIEFLY = Fit(epochs=1, batch_size=64)


def teacher():
    tf_keras.utils.set_random_seed(7)
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(8, "relu", name="hidden"),
            layers.Dense(3, "softmax", name="scores"),
        ]
    )


def test_a_network_of_ones_choice_learns_and_the_teacher_stays(tiny_task):
    model = teacher()
    before = model.get_weights()
    step = Distill(train=BRIEFLY, network=Mlp(hidden=(4,)))
    student, history = keras_step(model, step, tiny_task, seed=0, teacher=model)
    assert student.count_params() < model.count_params()
    assert history.epochs[0]["distance"] > 0
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_without_a_network_a_copy_trains_on(tiny_task):
    model = teacher()
    step = Distill(train=BRIEFLY)
    student, history = keras_step(model, step, tiny_task, seed=0, teacher=model)
    assert student is not model
    assert [layer.name for layer in student.layers] == [layer.name for layer in model.layers]
    assert history.epochs[0]["distance"] < 0.1  # it began where its teacher stands


def test_the_control_is_the_same_training_without_a_teacher(tiny_task):
    step = Distill(train=BRIEFLY, network=Mlp(hidden=(4,)))
    _, history = distill(teacher(), step, tiny_task, seed=0)
    assert "distance" not in history.epochs[0]


def test_a_recipe_teaches_unless_it_says_otherwise():
    text = """
name = "small"
[data]
source = "mnist-sample"
[network]
kind = "mlp"
[train]
epochs = 1
[[variant]]
name = "{0}"
from = "baseline"
step = {{ kind = "distill", network = {{ kind = "mlp", hidden = [8] }}, train = {{ epochs = 2 }} }}
[[variant]]
name = "clustered"
from = "baseline"
[variant.step]
kind = "cluster"
clusters = 8
fine_tune = {{ epochs = 3 }}
distill = {1}
"""
    found = {}
    for asked in ("true", "false", "{ weight = 0.4 }"):
        small, clustered = (v.step for v in parse_recipe(text.format("a", asked)).variants)
        found[asked] = distillation_of(clustered)
        assert distillation_of(small) == Distillation()
        assert (epochs_of(small), epochs_of(clustered)) == (2, 3)
    assert found == {
        "true": Distillation(),
        "false": None,
        "{ weight = 0.4 }": Distillation(weight=0.4),
    }


def test_hints_of_layers_that_are_not_there_are_refused_before_any_training():
    how = Distillation(hints={"anything": "missing"})
    small = Distill(train=BRIEFLY, network=Mlp(hidden=(4,)), distill=how)
    with pytest.raises(UserError, match="the teacher has no layer 'missing'"):
        check_layer_names(teacher(), small)
    known = msgspec.structs.replace(small, distill=Distillation(hints={"dense1": "hidden"}))
    check_layer_names(teacher(), known)  # what the student has is seen when it is built
