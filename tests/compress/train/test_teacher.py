"""What a teacher adds to a training, and that a training without one is what it was."""

import dataclasses
import math

import msgspec
import numpy as np
import pytest
import tf_keras

from compress.data.task import Scaling, Split
from compress.train.fit import Fit, TrainingFiles, fit
from compress.train.optimizers import GradientDescent, Sgd
from compress.train.teacher import Distillation, Teacher, output_distance
from deploy.errors import UserError
from deploy.record import Goal
from tests.compress.train.tiny import EVERYTHING, everything, numbers

layers = tf_keras.layers
ONE_STEP = Fit(epochs=1, batch_size=3, optimizer=Sgd(learning_rate=1.0))


class StopError(Exception):
    """What stops a training from outside."""


def softmax(logits):
    powers = np.exp(logits - np.max(logits))
    return powers / powers.sum()


def linear(bias, *, units=3, activation="softmax", middle=None):
    """A model of three inputs whose answers are its bias: all kernels are zero."""
    model = tf_keras.Sequential(
        [
            layers.Input((3,)),
            *([layers.Dense(middle, name="middle")] if middle else []),
            layers.Dense(units, activation, kernel_initializer="zeros", name="last"),
        ]
    )
    model.get_layer("last").bias.assign(bias)
    return model


def three(kind="classification", *, y=None, scaling=None):
    """A task of three samples that are all alike, all of which train."""
    x = np.ones((3, 3), np.float32)
    y = np.zeros(3, np.int64) if y is None else y
    part, empty = Split(raw=x, x=x, y=y), Split(raw=x[:0], x=x[:0], y=y[:0])
    return dataclasses.replace(
        numbers(), train=part, validation=empty, goal=Goal(task=kind, metric=None), scaling=scaling
    )


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_distance_of_classes_is_the_softened_divergence_computed_by_hand():
    taught, given = softmax(np.array([2.0, 0.0, -2.0])), softmax(np.array([0.0, 0.0, 0.0]))
    distance = output_distance(three(), Distillation(temperature=2.0))
    # logits / 2 are 1, 0, −1 against three equal ones; times 2²
    p = np.exp([1.0, 0.0, -1.0]) / (math.e + 1 + 1 / math.e)
    by_hand = 4 * sum(p * (np.log(p) + math.log(3)))
    got = distance(np.float32([taught, taught]), np.float32([given, taught]))
    assert np.allclose(got, [by_hand, 0], atol=1e-6)
    assert by_hand == pytest.approx(1.0649, abs=1e-4)


def test_a_probability_that_rounds_to_nothing_does_not_make_the_distance_infinite():
    distance = output_distance(three(), Distillation(temperature=1.0))
    got = distance(np.float32([[1, 0, 0]]), np.float32([[0, 1, 0]]))
    assert float(got[0]) == pytest.approx(-math.log(1e-30), rel=1e-4)


def test_the_distance_of_labels_is_the_mean_of_each_labels_own():
    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    task = three("multi_label", y=np.zeros((3, 2), np.int64))
    distance = output_distance(task, Distillation(temperature=2.0))
    taught, given = sigmoid(np.array([2.0, -4.0])), sigmoid(np.array([0.0, -4.0]))
    p = sigmoid(1.0)
    by_hand = 4 * (p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)) / 2
    got = distance(np.float32([taught]), np.float32([given]))
    assert float(got[0]) == pytest.approx(by_hand, rel=1e-4)


def test_the_distance_of_values_counts_in_standard_deviations_of_each_target():
    scaling = Scaling(mean=(0.0, 0.0), std=(2.0, 0.5))
    task = three("regression", y=np.zeros((3, 2), np.float32), scaling=scaling)
    got = output_distance(task, Distillation())(np.float32([[1, 1]]), np.float32([[5, 0]]))
    assert np.allclose(got, [(2**2 + 2**2) / 2])


def test_the_distance_of_reconstructions_is_the_mean_of_squares():
    x = np.zeros((3, 2, 2), np.float32)
    task = three("reconstruction", y=x)
    got = output_distance(task, Distillation())(x[:1], x[:1] + np.float32([[0, 2], [0, 0]]))
    assert np.allclose(got, [1.0])


@pytest.mark.parametrize("optimizer", [ONE_STEP.optimizer, GradientDescent(learning_rate=1.0)])
def test_one_step_moves_the_bias_as_computed_by_hand(optimizer):
    student, teacher = linear([0.0, 0.0, 0.0]), linear([2.0, 0.0, -2.0])
    how = Distillation(weight=0.25, temperature=2.0)
    config = msgspec.structs.replace(ONE_STEP, optimizer=optimizer)
    history = fit(student, three(), config, seed=0, teacher=Teacher(model=teacher, how=how))
    # truth: p − one-hot; the teacher: T · (softened p − softened q)
    p = np.full(3, 1 / 3)
    soft = np.exp([1.0, 0.0, -1.0]) / np.sum(np.exp([1.0, 0.0, -1.0]))
    gradient = 0.75 * (p - [1, 0, 0]) + 0.25 * 2 * (p - soft)
    assert np.allclose(student.get_layer("last").bias.numpy(), -gradient, atol=1e-5)
    assert history.epochs[0]["loss"] == pytest.approx(math.log(3), rel=1e-5)
    assert history.epochs[0]["distance"] == pytest.approx(1.0649, abs=1e-4)
    assert np.array_equal(teacher.get_layer("last").bias.numpy(), [2, 0, -2])


def test_a_teacher_alone_is_learned_to_its_answers_whatever_the_truth_says():
    student, teacher = linear([0.0, 0.0, 0.0]), linear([0.0, 1.0, 2.0])
    how = Distillation(weight=1.0, temperature=1.0)
    config = Fit(epochs=200, batch_size=3, optimizer=Sgd(learning_rate=0.5))
    fit(student, three(), config, seed=0, teacher=Teacher(model=teacher, how=how))
    x = np.ones((1, 3), np.float32)
    assert np.allclose(student(x), teacher(x), atol=1e-3)


def test_a_weight_of_nothing_is_a_training_without_a_teacher():
    config, trained = msgspec.structs.replace(EVERYTHING, epochs=2), []
    for teacher in (None, Teacher(model=everything(), how=Distillation(weight=0.0))):
        model = everything()
        fit(model, numbers(), config, seed=3, teacher=teacher)
        trained.append(model.get_weights())
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(*trained, strict=True))


def test_without_a_teacher_nothing_is_said_of_a_distance():
    history = fit(everything(), numbers(), EVERYTHING, seed=3)
    assert "distance" not in history.epochs[0]


def test_a_hint_pulls_a_layer_to_the_teachers_by_its_share_of_the_mean_square():
    student, teacher = linear([0.0] * 3, middle=2), linear([0.0] * 3, middle=2)
    student.get_layer("middle").set_weights([np.zeros((3, 2)), np.zeros(2)])
    teacher.get_layer("middle").set_weights([np.zeros((3, 2)), np.array([2.0, 4.0])])
    how = Distillation(weight=0.0, hints={"middle": "middle"}, hint_weight=0.5)
    fit(student, three(), ONE_STEP, seed=0, teacher=Teacher(model=teacher, how=how))
    # ½ · mean((b − t)²) / mean(t²) has the gradient ½ · (b − t) / 10 at each of the two
    assert np.allclose(student.get_layer("middle").bias.numpy(), [0.1, 0.2], atol=1e-5)


def test_a_narrower_layer_learns_its_hint_through_a_map_that_is_dropped():
    student, teacher = linear([0.0] * 3, middle=2), linear([0.0] * 3, middle=5)
    how = Distillation(weight=0.0, hints={"middle": "middle"})
    config = Fit(epochs=60, batch_size=3, optimizer=Sgd(learning_rate=0.2))
    before = len(student.weights)
    history = fit(student, three(), config, seed=0, teacher=Teacher(model=teacher, how=how))
    assert len(student.weights) == before
    assert len(history.epochs) == 60


def test_hints_reach_layers_of_models_inside_the_model():
    def nested():
        inner = tf_keras.Sequential([layers.Input((3,)), layers.Dense(2, name="deep")], "inner")
        return tf_keras.Sequential(
            [layers.Input((3,)), inner, layers.Dense(3, "softmax", kernel_initializer="zeros")]
        )

    student, teacher = nested(), nested()
    before = [layer.numpy() for layer in student.layers[0].weights]
    how = Distillation(weight=0.0, hints={"inner/deep": "inner/deep"})
    fit(student, three(), ONE_STEP, seed=0, teacher=Teacher(model=teacher, how=how))
    assert not same(before, [layer.numpy() for layer in student.layers[0].weights])
    assert all("call" not in layer.__dict__ for layer in student.layers[0].layers)


def test_a_training_with_a_teacher_goes_on_to_the_same_bits(tmp_path):
    teacher = everything()
    dense = teacher.layers[1].name
    how = Distillation(hints={"narrow": dense})

    def student():
        tf_keras.utils.set_random_seed(5)
        return tf_keras.Sequential(
            [
                layers.Input((6,)),
                layers.Dense(4, "relu", name="narrow"),
                layers.Dense(3, "softmax"),
            ]
        )

    def train(**more):
        model = student()
        lesson = Teacher(model=teacher, how=how)
        fit(model, numbers(), EVERYTHING, seed=3, teacher=lesson, **more)
        return model.get_weights()

    def stop(end):
        if end.epoch == 3:
            raise StopError

    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)
    with pytest.raises(StopError):
        train(files=files, on_epoch=stop)
    seen = []
    assert same(train(files=files, on_epoch=seen.append), train())
    assert len(seen) == 4  # epochs 3 to 6: the last step of the third was written down


def test_a_checkpoint_of_another_teacher_is_not_gone_on_from(tmp_path):
    other = everything()
    other.layers[-1].bias.assign([1.0, 0.0, 0.0])
    files = TrainingFiles(checkpoint=tmp_path / "standing.npz", every_seconds=0)

    def stop(_):
        raise StopError

    for teacher in (Teacher(model=everything()), Teacher(model=other)):
        seen = []
        watch = tf_keras.callbacks.LambdaCallback(on_epoch_begin=lambda at, _, s=seen: s.append(at))
        with pytest.raises(StopError):
            fit(
                everything(),
                numbers(),
                EVERYTHING,
                seed=3,
                teacher=teacher,
                files=files,
                on_epoch=stop,
                callbacks=[watch],
            )
        assert seen == [0]


def refused(student, teacher, how=Distillation()):
    with pytest.raises(UserError) as caught:
        fit(student, three(), ONE_STEP, seed=0, teacher=Teacher(model=teacher, how=how))
    return str(caught.value)


def test_a_teacher_that_gives_other_answers_is_refused():
    said = refused(linear([0.0] * 3), linear([0.0] * 4, units=4))
    assert said.startswith("teacher: must give one output a class, 3")


def test_a_model_that_is_to_teach_itself_is_refused():
    model = linear([0.0] * 3)
    assert "cannot teach itself" in refused(model, model)


@pytest.mark.parametrize("hints", [{"last": "first"}, {"first": "last"}])
def test_a_hint_of_a_layer_that_is_not_there_is_refused(hints):
    said = refused(linear([0.0] * 3), linear([0.0] * 3), Distillation(hints=hints))
    assert "has no layer 'first'; there are last" in said


def test_a_hint_between_layers_of_other_shapes_than_widths_is_refused():
    def model(name, *size):
        first = [layers.Reshape(size, name="shaped"), layers.Flatten()] if size else []
        return tf_keras.Sequential([layers.Input((3,)), *first, layers.Dense(3, "softmax")], name)

    how = Distillation(hints={"shaped": "shaped"})
    said = refused(model("student", 3, 1), model("teacher", 1, 3), how)
    assert said == (
        "hints: 'shaped' gives (3, 1), and 'shaped' of the teacher (1, 3); "
        "they may differ in their last axis alone"
    )
