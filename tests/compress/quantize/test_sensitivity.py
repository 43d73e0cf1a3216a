import dataclasses
import warnings

import matplotlib as mpl
import msgspec
import numpy as np
import pytest

from compress.data.task import Split
from compress.quantize.outputs import noise_share, outputs_of
from compress.quantize.plots import plot_sensitivity
from compress.quantize.sensitivity import LayerSensitivity, sensitivity
from compress.quantize.static import QuantizeStatic, quantize_static
from deploy.errors import UserError
from deploy.graph import array_of
from deploy.record import Goal
from tests.compress.quantize.networks import images, network, regression, task_with


def task(n=64):
    x = images(n, seed=2)
    validation = Split(raw=x, x=x, y=np.zeros(n, np.int64))
    return dataclasses.replace(task_with(images(64)), validation=validation)


def values_task(model, *, metric="mae"):
    """Return a task whose truth is what the float model gives, and 1 more or less beside it."""
    given = task()
    truth = outputs_of(model, given.validation.x)
    truth += np.where(np.arange(len(truth)) % 2, 1.0, -1.0)[:, None]
    validation = dataclasses.replace(given.validation, y=truth.astype(np.float32))
    goal = Goal(task="regression", metric=metric, unit="mm")
    return dataclasses.replace(given, validation=validation, goal=goal)


def spoiled(made=None):
    """Return the network with one weight in the conv so large that the others round to nothing."""
    made = made or network()
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
    def layer(saved_us, *, nats=3, noise=None):
        return LayerSensitivity(
            name="a", kl_divergence=nats, noise_share=noise, delta_points=0, saved_us=saved_us
        )

    assert layer(1.5).cost_per_us == 2
    assert layer(0.5, nats=None, noise=0.01).cost_per_us == 0.02
    assert [layer(saved).cost_per_us for saved in (None, 0, -1)] == [None] * 3


def test_layers_of_a_regression_are_ranked_by_the_noise_in_its_values():
    model = spoiled(regression())
    layers = sensitivity(model, QuantizeStatic(), values_task(model), options=None)
    assert layers[0].name == "conv"
    ratios = [layer.sqnr_db for layer in layers]
    assert ratios == sorted(ratios)
    assert ratios[0] < ratios[-1] - 5
    assert {layer.kl_divergence for layer in layers} == {None}


def test_what_a_regression_loses_is_told_in_per_cent_of_its_error():
    """The float model errs by 1 on average, so that an error of a hundredth more is one per cent."""
    model = regression()
    by_error = sensitivity(model, QuantizeStatic(), values_task(model), options=None)
    of = {layer.name: layer.delta_points for layer in by_error}
    alone = quantize_static(model, QuantizeStatic(exclude=("stem", "conv")), task(), ranges=None)
    truth = values_task(model).validation
    error = np.abs(outputs_of(alone, truth.x) - truth.y).mean()
    assert of["dense"] == pytest.approx(-100 * (error - 1), rel=1e-3)


def test_layers_of_a_reconstruction_are_judged_without_anomalies():
    """The validation part holds none: the model's own metric, ROC-AUC, cannot be told there."""
    model, given = regression(), values_task(regression())
    autoencoder = dataclasses.replace(given, goal=Goal(task="reconstruction", metric="roc_auc"))
    layers = sensitivity(model, QuantizeStatic(), autoencoder, options=None)
    assert all(layer.noise_share > 0 for layer in layers)
    assert any(layer.delta_points for layer in layers)


def test_no_validation_sample_is_refused():
    with pytest.raises(UserError, match="needs validation samples"):
        sensitivity(network(), QuantizeStatic(), task(0), options=None)


@pytest.mark.parametrize("made", [network(), regression()], ids=["classes", "values"])
def test_it_is_drawn(made, tmp_path):
    given = values_task(made) if made.graph.output[0].name == "dense:0" else task(8)
    layers = sensitivity(made, QuantizeStatic(), given, options=None)
    plot_sensitivity(layers, tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 1000


def test_noise_about_targets_that_never_move_is_read_back_and_is_not_taken_for_none(tmp_path):
    still = np.full((4, 1), 5.0)
    layers = [
        LayerSensitivity(
            name=name, kl_divergence=None, noise_share=noise_share(still, after), delta_points=0,
            saved_us=None,
        )
        for name, after in (("all", still + 0.1), ("none", still))
    ]  # fmt: skip
    again = msgspec.json.decode(msgspec.json.encode(layers), type=list[LayerSensitivity])
    assert again == layers
    assert [layer.sqnr_db for layer in again] == pytest.approx([-100, np.inf])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_sensitivity(layers, tmp_path / "layers.png")


def test_the_picture_of_values_names_the_noise_in_decibels(tmp_path):
    noisy = LayerSensitivity(
        name="a", kl_divergence=None, noise_share=0.001, delta_points=0, saved_us=None
    )
    with mpl.rc_context({"svg.fonttype": "none"}):  # letters, not their outlines
        plot_sensitivity([noisy], tmp_path / "layers.svg")
    text = (tmp_path / "layers.svg").read_text()
    assert "30 dB" in text
    assert "noise / variance of the outputs" in text
