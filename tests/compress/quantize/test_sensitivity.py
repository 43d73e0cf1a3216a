import dataclasses

import numpy as np
import pytest

from compress.data.task import Split
from compress.quantize.outputs import kl_divergence, outputs_of, probabilities
from compress.quantize.plots import plot_sensitivity
from compress.quantize.sensitivity import LayerSensitivity, sensitivity
from compress.quantize.static import QuantizeStatic
from deploy.errors import UserError
from deploy.graph import array_of
from tests.compress.quantize.networks import images, network, task_with


def task(n=64):
    x = images(n, seed=2)
    validation = Split(raw=x, x=x, y=np.zeros(n, np.int64))
    return dataclasses.replace(task_with(images(64)), validation=validation)


def spoiled():
    """Return the network with one weight in the conv so large that the others round to nothing."""
    made = network()
    kernel = next(t for t in made.graph.initializer if t.name == "conv/kernel")
    values = array_of(kernel).copy()
    values[:, 0, 0, 0] = 300
    kernel.raw_data = values.tobytes()
    return made


def test_the_layer_that_int8_spoils_comes_first():
    layers = sensitivity(spoiled(), QuantizeStatic(), task(), options=None)
    assert layers[0].name == "conv"
    assert [layer.kl_divergence for layer in layers] == sorted(
        (layer.kl_divergence for layer in layers), reverse=True
    )
    assert {layer.saved_us for layer in layers} == {None}


def test_excluded_layers_are_left_out_and_progress_is_heard():
    heard = []
    layers = sensitivity(
        network(), QuantizeStatic(exclude=("stem",)), task(), options=None,
        on_progress=lambda *at: heard.append(at),
    )  # fmt: skip
    assert {layer.name for layer in layers} == {"conv", "dense"}
    assert heard == [(1, 2), (2, 2)]


def test_every_layer_is_timed():
    layers = sensitivity(network(), QuantizeStatic(), task(8))
    assert all(layer.saved_us is not None for layer in layers)


def test_a_microsecond_that_is_not_saved_has_no_price():
    def layer(saved_us):
        return LayerSensitivity(name="a", kl_divergence=3, delta_points=0, saved_us=saved_us)

    assert layer(1.5).nats_per_us == 2
    assert [layer(saved).nats_per_us for saved in (None, 0, -1)] == [None] * 3


def test_no_validation_sample_is_refused():
    with pytest.raises(UserError, match="needs validation samples"):
        sensitivity(network(), QuantizeStatic(), task(0), options=None)


def test_it_is_drawn(tmp_path):
    layers = sensitivity(network(), QuantizeStatic(), task(8), options=None)
    plot_sensitivity(layers, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 1000


def test_logits_become_probabilities_and_probabilities_stay():
    assert probabilities(np.array([[0.0, 0.0]])).tolist() == [[0.5, 0.5]]
    assert probabilities(np.array([[0.9, 0.1]])).tolist() == [[0.9, 0.1]]


def test_a_divergence_is_zero_for_equals_and_known_by_hand_for_others():
    p, q = np.array([[0.5, 0.5]]), np.array([[0.25, 0.75]])
    assert kl_divergence(p, p) == 0
    assert kl_divergence(p, q) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))


def test_outputs_do_not_depend_on_how_samples_are_parted():
    x = images(50)
    np.testing.assert_allclose(
        outputs_of(network(), x), outputs_of(network(), x, [slice(0, 7), slice(7, 50)]), rtol=1e-5
    )
