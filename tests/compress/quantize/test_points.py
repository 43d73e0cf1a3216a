import dataclasses

import msgspec
import numpy as np
import pytest

from compress.quantize.mixed import Tried
from compress.quantize.points import points_gained, score
from compress.quantize.sensitivity import LayerSensitivity
from deploy.errors import UserError
from deploy.record import Goal
from tests.compress.quantize.networks import images, task_with


def task(kind, metric):
    return dataclasses.replace(task_with(images(2)), goal=Goal(task=kind, metric=metric))


SCORES = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])


def test_classes_are_judged_by_the_metric_of_the_task():
    y = np.array([0, 2, 2])
    assert score(task("classification", "accuracy"), SCORES, y) == pytest.approx(2 / 3)
    assert score(task("classification", "top_2"), SCORES, y) == 1
    assert score(task("classification", "f1_macro"), SCORES, y) == pytest.approx(
        (1 + 0 + 2 / 3) / 3
    )


def test_an_error_that_grows_is_a_loss_and_a_share_that_grows_a_gain():
    assert points_gained(task("regression", "mae"), 2.0, 2.1) == pytest.approx(-5)
    assert points_gained(task("regression", "r2"), 0.5, 0.49) == pytest.approx(-1)
    assert points_gained(task("classification", "accuracy"), 0.5, 0.51) == pytest.approx(1)


def test_a_reconstruction_is_judged_by_its_mean_squared_error():
    pixels = np.zeros((2, 4, 4, 1))
    given = task("reconstruction", "roc_auc")
    assert score(given, pixels + 0.5, pixels) == pytest.approx(0.25)
    assert points_gained(given, 0.25, 0.5) == pytest.approx(-100)


def test_a_model_without_error_may_lose_nothing():
    assert points_gained(task("regression", "mae"), 0.0, 0.1) == -1e6
    assert points_gained(task("regression", "mae"), 0.0, 0.0) == 0


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.5), (0.0, 1e30), (1e-300, 1e30)])
def test_what_is_lost_of_no_error_is_read_back_as_it_was_written(before, after):
    lost = points_gained(task("regression", "mae"), before, after)
    layer = LayerSensitivity(
        name="a", kl_divergence=None, noise_share=0.1, delta_points=lost, saved_us=None
    )
    tried = Tried(floats=(), drop_points=-lost, stored="float32")
    for record in (layer, tried):
        assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record


def test_outputs_that_do_not_pair_with_the_truth_are_refused():
    with pytest.raises(UserError, match="needs one row of answers and one row of labels or values"):
        score(task("regression", "mae"), SCORES, np.zeros((3, 2)))
