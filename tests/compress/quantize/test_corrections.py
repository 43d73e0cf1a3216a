import msgspec
import numpy as np
import pytest

from compress.quantize import corrections
from compress.quantize.corrections import corrected
from compress.quantize.outputs import kl_divergence, outputs_of
from compress.quantize.static import QuantizeStatic, quantize_static, with_method
from compress.quantize.storage import WeightOnly, weight_only
from deploy.errors import ParityError, UserError
from deploy.graph import array_of, weighted_nodes
from deploy.kernels import int8_layers
from tests.compress.quantize.networks import (
    depthwise_chain,
    images,
    network,
    task_with,
    taught,
    textures,
)

VNNI = "x86-vnni"
LAYERS = ["stem", "depthwise", "pointwise", "dense"]


def lost(made, model, x):
    """Return what quantization costs on samples that calibrated nothing."""
    return kl_divergence(outputs_of(model, x), outputs_of(made, x))


def static(model, **settings):
    step = QuantizeStatic(**({"target": VNNI} | settings))
    return quantize_static(model, step, task_with(images(200)))


def stored(model):
    return {found.node.name: array_of(found.weight) for found in weighted_nodes(model.graph)}


@pytest.mark.parametrize("spread", [100.0, 1000.0])
@pytest.mark.parametrize("per_channel", [False, True])
def test_equalisation_saves_a_network_whose_channels_differ_in_range(spread, per_channel):
    """As a folded MobileNet's do (Nagel et al. 2019, figure 2), where 8 bits alone lose much."""
    x, y = textures(500, seed=1)
    model = taught(depthwise_chain(spread=spread), x, y)
    new, truth = textures(500, seed=2)

    def right(made):
        return (outputs_of(made, new).argmax(axis=1) == truth).mean()

    def int8(**settings):
        # This grid is exact on every x86; each scheme has the same failure.
        step = QuantizeStatic(target="x86-avx2", per_channel=per_channel, **settings)
        return quantize_static(model, step, task_with(x[:200]))

    assert right(model) > 0.85
    assert right(int8()) < right(model) - 0.07
    assert right(int8(correct=("equalise",))) > right(model) - 0.06


def test_no_other_correction_saves_it_from_one_scale_a_layer():
    x, y = textures(500, seed=1)
    model = taught(depthwise_chain(spread=1000.0), x, y)
    new, truth = textures(500, seed=2)

    def right(*correct):
        step = QuantizeStatic(target="x86-avx2", per_channel=False, correct=correct)
        made = quantize_static(model, step, task_with(x[:200]))
        return (outputs_of(made, new).argmax(axis=1) == truth).mean()

    assert right("rounding", "bias") < 0.75
    assert right("equalise", "rounding", "bias") > 0.85


@pytest.mark.parametrize("how", [("rounding",), ("bias",), ("rounding", "bias")], ids="+".join)
@pytest.mark.parametrize("per_channel", [True, False])
def test_corrections_lose_less_than_four_bits_alone(how, per_channel):
    model, x = depthwise_chain(), images(200, seed=7)
    settings = {"weight_bits": 4, "per_channel": per_channel}
    naive = lost(static(model, **settings), model, x)
    repaired = lost(static(model, correct=how, **settings), model, x)
    assert repaired < naive / 2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_file_holds_the_integers_that_were_chosen(bits, target, per_channel):
    model, task = depthwise_chain(), task_with(images())
    levels = 64 if target == "x86-avx2" else 127
    made = corrected(
        model, LAYERS, task.calibration.x, bits=bits, levels=levels, per_channel=per_channel,
        corrections=("rounding",),
    )  # fmt: skip
    step = QuantizeStatic(
        target=target, weight_bits=bits, per_channel=per_channel, correct=("rounding",)
    )
    quantized = quantize_static(model, step, task)
    assert set(int8_layers(quantized, target=target)) == set(LAYERS)
    reach = min(levels, 2 ** (bits - 1) - 1)
    on_grid, chosen = stored(made.model), stored(quantized)
    names = {found.node.name: found.weight.name for found in weighted_nodes(model.graph)}
    for name in LAYERS:
        assert chosen[name].dtype == np.int8
        assert np.abs(chosen[name].astype(int)).max() <= reach
        scale = made.scales[names[name]]
        shape = [-1 if a == (1 if name == "dense" else 0) else 1 for a in range(chosen[name].ndim)]
        np.testing.assert_array_equal(np.rint(on_grid[name] / scale.reshape(shape)), chosen[name])


@pytest.mark.parametrize("how", [(), ("rounding", "bias")], ids=len)
def test_stored_weights_of_four_bits_have_fifteen_values(how):
    model, x = depthwise_chain(), images(200, seed=7)
    step = WeightOnly(weight_bits=4, correct=how)
    made = weight_only(model, step, task_with(images(200)))
    assert all(set(np.unique(w)) <= set(range(-7, 8)) for w in stored(made).values())
    if how:
        plain = weight_only(model, WeightOnly(weight_bits=4), task_with(images()))
        assert lost(made, model, x) < lost(plain, model, x) / 2


def test_the_mean_output_of_a_corrected_layer_is_that_of_the_float_model():
    model, x = depthwise_chain(), images(64)
    made = corrected(
        model, LAYERS, x, bits=3, levels=127, per_channel=True, corrections=("bias",)
    )  # fmt: skip
    before, after = (np.log(outputs_of(m, x)) for m in (model, made.model))

    def scores(logs):  # what the last layer gives, up to one number a sample
        return (logs - logs.mean(axis=1, keepdims=True)).mean(axis=0)

    plain = corrected(model, LAYERS, x, bits=3, levels=127, per_channel=True, corrections=())
    np.testing.assert_allclose(scores(after), scores(before), atol=1e-4)
    assert np.abs(scores(np.log(outputs_of(plain.model, x))) - scores(before)).max() > 1e-2


def test_excluded_layers_keep_their_weights():
    model = depthwise_chain()
    made = static(model, weight_bits=4, correct=("rounding", "bias"), exclude=("depthwise",))
    np.testing.assert_array_equal(stored(made)["depthwise"], stored(model)["depthwise"])
    assert "depthwise" not in int8_layers(made, target=VNNI)


def test_weights_that_two_layers_share_are_rounded_once():
    model = depthwise_chain()
    first = next(node for node in model.graph.node if node.name == "pointwise")
    relu = next(node for node in model.graph.node if node.name == "depthwise/relu")
    again = type(first)()
    again.CopyFrom(first)
    again.name, again.output[0] = "again", "again:0"
    total = type(first)(
        op_type="Add", name="add", input=["pointwise:0", "again:0"], output=["sum:0"]
    )
    place = list(model.graph.node).index(relu)
    model.graph.node.insert(place + 2, total)
    model.graph.node.insert(place + 2, again)
    next(node for node in model.graph.node if node.name == "pointwise/relu").input[0] = "sum:0"
    made = static(model, weight_bits=4, correct=("rounding", "bias"))
    assert np.abs(stored(made)["again"].astype(int)).max() == 7


def test_a_network_that_cannot_be_equalised_is_refused_with_the_reasons():
    with pytest.raises(UserError, match=r"no two layers to equalise \('stem': 2 operators read"):
        static(network(), correct=("equalise",))


def test_an_equalisation_that_changes_the_numbers_is_no_equalisation(monkeypatch):
    monkeypatch.setattr(corrections, "equalised", lambda _: depthwise_chain(seed=1))
    with pytest.raises(ParityError, match="equalised layers give outputs"):
        static(depthwise_chain(), correct=("equalise",))


def test_the_best_calibration_is_chosen_for_the_corrected_model():
    model, task = depthwise_chain(spread=1000.0), task_with(images(64))
    step = QuantizeStatic(target=VNNI, calibration="auto", correct=("equalise", "bias"))
    decided = with_method(model, step, task)
    assert decided.calibration != "auto"
    assert decided.correct == ("equalise", "bias")


def test_nothing_is_printed_and_no_bias_is_left_unread(capfd):
    how = ("equalise", "rounding", "bias")
    made = static(depthwise_chain(spread=10.0), weight_bits=4, correct=how)
    outputs_of(made, images())
    assert capfd.readouterr() == ("", "")
    read = {name for node in made.graph.node for name in node.input}
    assert {t.name for t in made.graph.initializer if "bias" in t.name} <= read


def test_a_correction_is_named_once():
    with pytest.raises(msgspec.ValidationError, match="names each correction once"):
        msgspec.convert({"kind": "quantize_static", "correct": ["bias", "bias"]}, QuantizeStatic)
