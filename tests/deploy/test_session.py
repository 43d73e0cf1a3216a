import contextlib

import numpy as np
import onnxruntime as ort
import pytest

from deploy.bench import Bench
from deploy.errors import UserError
from deploy.machine import usable_cores
from deploy.preprocess import Cast, Normalize, Reshape, Scale
from deploy.probes import SUMMED
from deploy.record import SessionOptions
from deploy.session import ModelMetadata, fast_sums_overflow, open_model, ort_options
from tests.deploy import tiny_onnx

METADATA = ModelMetadata(
    step={"kind": "magnitude_prune", "final_sparsity": 0.9, "skip": ["dense2"]},
    parent="ab" * 32,
    preprocess=(Cast(dtype="float32"), Scale(factor=0.5), Normalize(mean=(0.5,), std=(2.0,))),
    labels=("null", "eins", '"zwei"', "три"),
    data="mnist-sample",
    data_licence="CC BY-SA 3.0",
    versions={"numpy": "2.0"},
)


def test_metadata_comes_back_from_the_file_as_it_was_written():
    props = METADATA.to_props()
    assert all(key.startswith("lightship.") for key in props)
    model = open_model(tiny_onnx.linear(np.eye(2), metadata=props))
    assert model.metadata == METADATA


def test_a_model_of_another_maker_has_empty_metadata():
    model = open_model(tiny_onnx.linear(np.eye(2), metadata={"author": "someone", "labels": "x"}))
    assert model.metadata == ModelMetadata()


@pytest.mark.parametrize(
    "props",
    [
        {"lightship.labels": "not json"},
        {"lightship.labels": '["a", 1]'},
        {"lightship.preprocess": '[{"op": "melt"}]'},
        {"lightship.from_the_future": "1"},
        {"lightship.step": '{"kind":' + "[" * 100_000 + "]" * 100_000 + "}"},
    ],
    ids=["no json", "no text", "unknown step", "unknown field", "nested without end"],
)
def test_metadata_of_ours_that_does_not_decode_names_the_file(tmp_path, props):
    path = tmp_path / "broken.onnx"
    path.write_bytes(tiny_onnx.linear(np.eye(2), metadata=props))
    with pytest.raises(UserError, match=r"broken\.onnx: metadata_props: lightship\.\* entries"):
        open_model(path)


def test_the_model_says_what_it_takes(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_onnx.linear(np.eye(3)))
    model = open_model(path)
    assert (model.where, model.input_name, model.output_name) == (str(path), "x", "scores")
    assert (model.input_shape, model.input_dtype, model.fixed_batch) == ((3,), np.float32, None)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.onnx: no such file; give an ONNX model"):
        open_model(tmp_path / "nothing.onnx")


@pytest.mark.parametrize("garbage", [b"", b"\x00\x01", b"PK\x03\x04 not a model" * 50])
def test_garbage_is_one_line_that_names_the_file(tmp_path, garbage):
    path = tmp_path / "garbage.onnx"
    path.write_bytes(garbage)
    with pytest.raises(UserError, match=r"garbage\.onnx: ONNX Runtime cannot open it") as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def test_a_model_with_two_inputs_is_refused():
    add = tiny_onnx.model(
        [("Add", ["a", "b"], ["c"])],
        inputs={"a": ("float32", ("n", 2)), "b": ("float32", ("n", 2))},
        outputs={"c": ("float32", ("n", 2))},
    )
    with pytest.raises(UserError, match="one input and one output, got 2 and 1"):
        open_model(add)


@pytest.mark.parametrize("shape", [("n", "width"), (4, 2), ()])
def test_an_input_shape_without_exactly_a_free_batch_axis_is_refused(shape):
    identity = tiny_onnx.model(
        [("Identity", ["x"], ["y"])],
        inputs={"x": ("float32", shape)},
        outputs={"y": ("float32", shape)},
    )
    with pytest.raises(UserError, match="free batch axis") as caught:
        open_model(identity)
    assert str(list(shape)) in str(caught.value)


def test_an_input_of_a_type_without_meaning_here_is_refused():
    double = tiny_onnx.model(
        [("Identity", ["x"], ["y"])],
        inputs={"x": ("float64", ("n", 1))},
        outputs={"y": ("float64", ("n", 1))},
    )
    with pytest.raises(UserError, match=r"input type tensor\(double\) is not supported"):
        open_model(double)


def test_a_model_that_takes_one_sample_at_a_time_is_given_one_at_a_time():
    model = open_model(tiny_onnx.linear(np.eye(2), batch=1))
    samples = np.float32([[1, 2], [3, 4], [5, 6]])
    assert model.fixed_batch == 1
    assert model.scores(samples).tolist() == samples.tolist()


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_the_batch_size_does_not_show_in_the_scores(batch):
    model = open_model(tiny_onnx.linear([[1.0, -1.0], [0.5, 2.0]]))
    samples = np.arange(10, dtype=np.float32).reshape(5, 2)
    expected = samples @ np.float32([[1, -1], [0.5, 2]])
    assert np.array_equal(model.scores(samples, batch=batch), expected)


def test_raw_samples_are_preprocessed_as_the_file_says():
    metadata = ModelMetadata(preprocess=(Reshape(shape=(2,)), Scale(factor=0.5, offset=1.0)))
    model = open_model(tiny_onnx.linear(np.eye(2), metadata=metadata.to_props()))
    assert model.scores(np.uint8([[[2], [4]]])).tolist() == [[2, 3]]


def test_samples_that_do_not_fit_name_both_shapes():
    model = open_model(tiny_onnx.linear(np.eye(3)))
    with pytest.raises(
        UserError, match=r"model: samples of shape \(2,\).* 'x', which takes \(3,\)"
    ):
        model.scores(np.zeros((4, 2), np.float32))


def of_type(dtype):
    return tiny_onnx.model(
        [("Cast", ["x"], ["y"], {"to": 1})],
        inputs={"x": (dtype, ("n", 1))},
        outputs={"y": ("float32", ("n", 1))},
    )


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", np.float32(0.5)),
        ("uint8", np.float64(256)),
        ("uint8", np.int64(-1)),
        ("uint8", np.float32("nan")),
        ("int8", np.uint8(128)),
        ("int64", np.float64(2**63)),
        ("int64", np.uint64(2**63)),
        ("int32", np.float32("inf")),
    ],
)
def test_a_value_that_the_input_cannot_hold_is_refused_with_its_sample(dtype, value):
    samples = np.zeros((5, 1), value.dtype)
    samples[3] = value
    with pytest.raises(UserError, match=rf"'x' takes {dtype}, which cannot hold .* of sample 3 "):
        open_model(of_type(dtype)).scores(samples, batch=2)


@pytest.mark.parametrize("value", [np.float64(255), np.int64(7), np.True_, np.float32(0)])
def test_a_value_that_the_input_can_hold_is_kept(value):
    assert open_model(of_type("uint8")).scores(np.array([[value]])).tolist() == [[float(value)]]


@pytest.mark.parametrize("place", ["x", "lightship.data", '"mnist"'])
def test_names_and_metadata_that_are_no_text_are_one_line(tmp_path, place):
    content = tiny_onnx.linear(np.eye(2), metadata={"lightship.data": '"mnist"'})
    path = tmp_path / "damaged.onnx"
    text = place.encode()
    path.write_bytes(content.replace(text, b"\xff" * len(text)))
    with pytest.raises(UserError, match=r"damaged\.onnx: .*(no text|cannot open)") as caught:
        open_model(path)
    assert "\n" not in str(caught.value)


def test_whichever_byte_of_a_model_is_damaged_it_opens_or_is_refused():
    content = tiny_onnx.linear(np.eye(2), metadata={"lightship.data": '"mnist"'})
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] = 0xFF
        with contextlib.suppress(UserError):  # anything else fails the test
            open_model(bytes(damaged))


def test_a_model_that_fails_as_it_runs_is_one_line():
    content = tiny_onnx.model(
        [("Reshape", ["x", "shape"], ["y"])],
        inputs={"x": ("float32", ("n", 2))},
        outputs={"y": ("float32", ("n", "m"))},
        initializers={"shape": np.int64([7, 11])},
    )
    with pytest.raises(UserError, match=r"ONNX Runtime cannot run it: .*[Rr]eshape") as caught:
        open_model(content).scores(np.zeros((1, 2), np.float32))
    assert "\n" not in str(caught.value)


def test_no_samples_are_refused():
    with pytest.raises(UserError, match="there are no samples"):
        open_model(tiny_onnx.linear(np.eye(3))).scores(np.zeros((0, 3), np.float32))


def test_the_options_reach_onnx_runtime():
    options = ort_options(SessionOptions(threads=3, disabled_optimizers=("A", "B")))
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    key = "optimization.disable_specified_optimizers"
    assert options.get_session_config_entry(key) == "A;B"
    default = ort_options(SessionOptions())
    assert default.get_session_config_entry(key) == "WeightBiasQuantization"
    assert default.intra_op_num_threads == 1


def asks_for_exact_sums(options):
    try:
        return ort_options(options).get_session_config_entry("session.x64quantprecision") == "1"
    except RuntimeError:  # it is not set
        return False


@pytest.mark.parametrize("overflow", [True, False])
def test_exact_sums_are_asked_for_where_fast_ones_overflow_and_nowhere_else(overflow, monkeypatch):
    """Where they do not, ONNX Runtime may take kernels half as fast all the same."""
    monkeypatch.setattr("deploy.session.fast_sums_overflow", lambda: overflow)
    assert asks_for_exact_sums(SessionOptions()) == overflow
    assert not asks_for_exact_sums(SessionOptions(exact_sums=False))


@pytest.fixture
def asked_anew():
    fast_sums_overflow.cache_clear()
    yield
    fast_sums_overflow.cache_clear()


@pytest.mark.parametrize(
    ("weight", "target", "overflow"), [(126, "x86-vnni", True), (127, "x86-avx2", False)]
)
def test_whether_fast_sums_overflow_is_asked_of_the_kernels(
    weight, target, overflow, asked_anew, monkeypatch
):
    """What the system says of a processor is not: emulated, it is the host's."""
    made = np.array([weight * 255 * SUMMED], np.int32)

    class Kernels:
        def __init__(self, *_, **__):
            pass

        def run(self, _, inputs):
            assert inputs["x0"].tolist() == [[255] * SUMMED]
            return [made]

    monkeypatch.setattr("deploy.session.this_target", lambda: target)
    monkeypatch.setattr("deploy.session.ort.InferenceSession", Kernels)
    assert fast_sums_overflow() == overflow


@pytest.mark.parametrize(
    ("target", "overflow"), [("x86-vnni", False), ("x86-avx2", True), ("arm64", False)]
)
def test_where_the_kernels_cannot_be_asked_the_processor_tells(
    target, overflow, asked_anew, monkeypatch
):
    monkeypatch.setattr("deploy.session.sum_model", lambda: b"a build without this operator")
    monkeypatch.setattr("deploy.session.this_target", lambda: target)
    assert fast_sums_overflow() == overflow


def test_what_stops_onnx_runtime_with_exact_sums_is_opened_with_fast_ones(monkeypatch):
    asked = []

    def once(options):
        asked.append(options.exact_sums)
        if options.exact_sums:
            raise RuntimeError("Attempt to replace the existing tensor")
        return ort_options(options)

    monkeypatch.setattr("deploy.session.ort_options", once)
    monkeypatch.setattr("deploy.session.fast_sums_overflow", lambda: True)
    open_model(tiny_onnx.linear(np.eye(3)))
    assert asked == [True, False]
    monkeypatch.setattr("deploy.session.fast_sums_overflow", lambda: False)
    with pytest.raises(UserError, match="Attempt to replace"):
        open_model(tiny_onnx.linear(np.eye(3)))


@pytest.mark.parametrize("threads", [0, -1])
def test_no_thread_at_all_is_refused(threads):
    with pytest.raises(UserError, match=rf"^threads: must be 1 or more, got {threads}; give"):
        open_model(tiny_onnx.linear(np.eye(2)), SessionOptions(threads=threads))


def test_four_threads_a_core_are_allowed_and_one_more_is_not():
    most = 4 * usable_cores()
    assert ort_options(SessionOptions(threads=most)).intra_op_num_threads == most
    with pytest.raises(UserError, match=rf"^threads: must be at most {most} .* got {most + 1}"):
        open_model(tiny_onnx.linear(np.eye(2)), SessionOptions(threads=most + 1))
    with pytest.raises(UserError, match=r"^threads: must be at most"):
        Bench(threads=most + 1)


def float_layer_between_quantized_ones():
    scale, zero = np.float32(1 / 16), np.uint8(0)
    # Rounded to int8 per tensor beside 8.0, a weight of 1/64 vanishes.
    weights = np.float32([[8.0, 1 / 64], [0.0, 1 / 64]])
    return tiny_onnx.model(
        [
            ("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            ("DequantizeLinear", ["xq", "s", "z"], ["xf"]),
            ("Gemm", ["xf", "w", "b"], ["yf"]),
            ("QuantizeLinear", ["yf", "s", "z"], ["yq"]),
            ("DequantizeLinear", ["yq", "s", "z"], ["y"]),
        ],
        inputs={"x": ("float32", ("n", 2))},
        outputs={"y": ("float32", ("n", 2))},
        initializers={"s": scale, "z": zero, "w": weights, "b": np.zeros(2, np.float32)},
    )


def test_a_layer_left_in_float_between_quantized_ones_stays_in_float():
    scores = open_model(float_layer_between_quantized_ones()).scores(np.float32([[1, 15]]))
    assert scores.tolist() == [[8.0, 0.25]]


@pytest.mark.skipif(
    tuple(int(part) for part in ort.__version__.split(".")[:2]) < (1, 23),
    reason="this ONNX Runtime does not re-quantise float layers",
)
def test_without_the_default_options_that_layer_would_not_stay_in_float():
    options = SessionOptions(disabled_optimizers=())
    scores = open_model(float_layer_between_quantized_ones(), options).scores(np.float32([[1, 15]]))
    assert scores[0, 1] != 0.25
