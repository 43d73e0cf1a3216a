import sys

import numpy as np
import pytest
import tf_keras

from compress.artifacts import describe, preprocess_of, save_tflite
from compress.export import to_tflite as room
from compress.export.to_tflite import LiteRt, reasons_in_float, to_tflite, with_metadata
from deploy.errors import MissingExtraError, ParityError, UserError
from deploy.record import read_record
from deploy.session import open_model
from deploy.tflite import computes_in_int8, layer_facts, read_tflite

pytest.importorskip("ai_edge_litert", reason="the extra litert is not installed")
L = tf_keras.layers


@pytest.fixture(scope="module")
def network(tiny_task):
    """Convolution with BatchNorm, depthwise convolution, and a dense layer of 1,024 weights."""
    tf_keras.utils.set_random_seed(0)
    image = L.Input((8, 8, 1), name="image")
    x = L.Conv2D(4, 3, padding="same", name="stem")(image)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(name="relu")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = L.Flatten(name="flatten")(x)
    x = L.Dense(4, activation="relu", name="wide")(x)
    model = tf_keras.Model(image, L.Dense(3, activation="softmax", name="scores")(x), name="net")
    kernel = model.get_layer("wide").kernel
    zeros = np.asarray(kernel).copy()
    zeros[::2] = 0  # as pruning leaves them
    kernel.assign(zeros)
    return model


@pytest.fixture(scope="module")
def made(network, tiny_task):
    """The three forms of the network, which no test changes."""
    return {
        form: to_tflite(network, LiteRt(form=form), tiny_task)
        for form in ("float", "dynamic", "int8")
    }


def keras(network, x):
    return np.asarray(network(x, training=False))


def test_the_float_form_gives_the_numbers_of_keras(network, made, tiny_task):
    x = tiny_task.test.x
    np.testing.assert_allclose(open_model(made["float"]).run(x), keras(network, x), atol=1e-5)


def test_the_int8_forms_stay_close_and_take_and_give_float(network, made, tiny_task):
    x = tiny_task.test.x
    for form in ("dynamic", "int8"):
        model = open_model(made[form])
        scores = model.run(x)
        assert (model.input_dtype, scores.dtype) == (np.float32, np.float32)
        assert 0 < np.abs(scores - keras(network, x)).max() < 0.1


def test_layers_bear_their_keras_names_and_keep_their_zeros_in_every_form(made):
    for content in made.values():
        facts = {layer.name: layer for layer in layer_facts(read_tflite(content), {})}
        assert list(facts) == ["stem", "depthwise", "wide", "scores"]
        assert facts["wide"].parameters == 1024
        assert facts["wide"].zeros >= 512
        model = open_model(content)
        assert (model.input_name, model.output_name) == ("image", "scores")


def test_int8_is_int8_from_end_to_end_and_dynamic_where_it_pays(made):
    def in_int8(form):
        model = read_tflite(made[form])
        return [computes_in_int8(model, *found) for found in model.weighted()]

    assert in_int8("float") == [False] * 4
    assert in_int8("dynamic") == [False, False, True, False]
    assert in_int8("int8") == [True] * 4
    kinds = [op.kind for op in read_tflite(made["int8"]).operators]
    assert (kinds[0], kinds[-1]) == ("QUANTIZE", "DEQUANTIZE")


def test_the_dynamic_form_rounds_activations_while_it_runs(network, made, tiny_task):
    """The proof that int8 multiplied: weights rounded alone would give other scores."""
    rounded = tf_keras.models.clone_model(network)
    rounded.set_weights(network.get_weights())
    kernel = rounded.get_layer("wide").kernel
    (stored,) = (w for _, w in read_tflite(made["dynamic"]).weighted() if w.name == "wide/kernel")
    values = np.asarray(kernel)
    ints = stored.stored().astype(np.float32).T
    scale = np.abs(values).max(axis=0) / np.maximum(np.abs(ints).max(axis=0), 1)
    kernel.assign(ints * scale)
    x = tiny_task.test.x
    dynamic = open_model(made["dynamic"]).run(x)
    weights_alone = np.abs(dynamic - keras(rounded, x)).max()
    assert weights_alone > 1e-4
    assert weights_alone < 0.1


def test_the_reasons_for_float_are_those_of_the_bytes(made):
    reasons = reasons_in_float(made["dynamic"], LiteRt(form="dynamic"))
    assert set(reasons) == {"stem", "depthwise", "scores"}
    assert "fewer than 1,024 weights" in reasons["stem"]
    assert reasons_in_float(made["int8"], LiteRt()) == {}
    assert reasons_in_float(made["float"], LiteRt(form="float")) == {}


def test_equal_models_give_equal_bytes_and_the_model_is_left_alone(network, made, tiny_task):
    before = [weight.copy() for weight in network.get_weights()]
    assert to_tflite(network, LiteRt(form="float"), tiny_task) == made["float"]
    for weight, kept in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, kept)


def test_every_buffer_lies_at_a_multiple_of_sixteen(made, tiny_task):
    content = with_metadata(made["int8"], describe(tiny_task, step={}, parent=None))

    def address(data):
        return np.frombuffer(data, np.uint8).__array_interface__["data"][0]

    stored = [tensor.data for tensor in read_tflite(content).tensors if len(tensor.data)]
    assert len(stored) > 4
    assert {(address(data) - address(content)) % 16 for data in stored} == {0}


def test_the_file_says_what_it_is_and_so_does_its_record(made, tiny_task, tmp_path):
    about = describe(tiny_task, step={"kind": "litert", "form": "int8"}, parent="ab" * 32)
    path = tmp_path / "model.tflite"
    record = save_tflite(made["int8"], path, about, seed=3, notes={"stem": "a reason"})
    assert record == read_record(path)
    assert (record.format, record.seed, record.parent) == ("tflite", 3, "ab" * 32)
    assert [layer.note for layer in record.layers] == ["a reason", None, None, None]
    metadata = open_model(path).metadata
    assert (metadata.labels, metadata.preprocess) == (tiny_task.labels, tiny_task.preprocess)
    assert "ai-edge-litert" in metadata.versions
    assert preprocess_of(path) == tiny_task.preprocess
    again = with_metadata(path.read_bytes(), about)
    assert open_model(again).metadata == about  # replaced, not added
    np.testing.assert_array_equal(
        open_model(again).run(tiny_task.test.x), open_model(made["int8"]).run(tiny_task.test.x)
    )


def test_other_numbers_than_those_of_keras_are_found_out(network, tiny_task, monkeypatch):
    real = room._convert

    def of_another_model(model, step, calibration):
        other = tf_keras.models.clone_model(model)
        return real(other, step, calibration)

    monkeypatch.setattr(room, "_convert", of_another_model)
    with pytest.raises(ParityError, match="outputs differ by"):
        to_tflite(network, LiteRt(form="float"), tiny_task)


def test_what_cannot_be_converted_is_one_line(tiny_task):
    two = tf_keras.Sequential([L.Input((8, 8, 3)), L.Flatten(), L.Dense(3)], name="two")
    with pytest.raises(UserError, match=r"takes samples of shape \(8, 8, 3\), but those"):
        to_tflite(two, LiteRt(), tiny_task)
    a = L.Input((8, 8, 1))
    pair = tf_keras.Model(a, [L.Flatten()(a), L.Flatten()(a)], name="pair")
    with pytest.raises(UserError, match="one input and one output, got 1 and 2"):
        to_tflite(pair, LiteRt(), tiny_task)


def test_an_operator_that_litert_lacks_is_one_line(tiny_task):
    import tensorflow as tf

    image = L.Input((8, 8, 1))
    x = L.Lambda(lambda v: tf.linalg.det(tf.squeeze(v, -1))[:, None])(image)
    model = tf_keras.Model(image, L.Dense(3)(x), name="odd")
    with pytest.raises(UserError, match=r"cannot convert it to LiteRT \(float\): ") as caught:
        to_tflite(model, LiteRt(form="float"), tiny_task)
    assert "\n" not in str(caught.value)


def test_without_litert_nothing_is_converted(network, tiny_task, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lightship\[litert\]'"):
        to_tflite(network, LiteRt(), tiny_task)


def test_the_unit_of_targets_far_apart_in_size_stays_in_float(tiny_task):
    """On one grid of 256 steps for both, the second target would have a single value."""
    tf_keras.utils.set_random_seed(0)
    image = L.Input((8, 8, 1), name="image")
    x = L.Dense(2, name="standard")(L.Flatten(name="flatten")(image))
    std, mean = [1000.0, 0.01], [5000.0, 1.7]
    model = tf_keras.Model(image, L.Rescaling(std, offset=mean, name="unit")(x), name="net")
    x = tiny_task.test.x
    content = to_tflite(model, LiteRt(form="int8"), tiny_task)
    apart = np.abs(open_model(content).run(x) - keras(model, x)).max(axis=0)
    assert (apart / std < 0.2).all()
    assert open_model(content).run(x[:1]).shape == (1, 2)
    assert content == to_tflite(model, LiteRt(form="int8"), tiny_task)
