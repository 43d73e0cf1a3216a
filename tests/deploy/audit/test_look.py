"""The audit needs the onnx package, which a device does not have."""

import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from deploy.audit import audit, table
from deploy.audit.look import _slower
from deploy.bench import Bench
from deploy.cli import cli
from deploy.errors import MissingExtraError, UserError
from deploy.record import SessionOptions
from deploy.session import fast_sums_overflow
from tests.deploy.tiny_onnx import linear, model

try:
    import onnx
except ModuleNotFoundError:
    onnx = None

needs_onnx = pytest.mark.skipif(onnx is None, reason="a device has no onnx: nothing to audit with")
RANDOM = np.random.default_rng(0)
F32, U8, I8, I32 = np.float32, np.uint8, np.int8, np.int32


def chain(*, middle="int8"):
    """Return image → conv → conv → Gemm, quantized; the second convolution as ``middle`` says."""
    tensors = {
        "scale": F32(1 / 64), "zero": U8(128), "wscale": F32(1 / 128), "wzero": I8(0),
        "w1": RANDOM.integers(-99, 99, (8, 3, 3, 3)).astype(I8),
        "w2": RANDOM.integers(-99, 99, (8, 8, 3, 3)).astype(I8),
        "w2f": RANDOM.normal(size=(8, 8, 3, 3)).astype(F32),
        "w3": RANDOM.integers(-99, 99, (8 * 36, 4)).astype(I8),
        "flat": np.int64([-1, 8 * 36]),
    }  # fmt: skip
    pads = {"pads": [1, 1, 1, 1]}
    act, wgt = ["scale", "zero"], ["wscale", "wzero"]
    nodes = [
        ("QuantizeLinear", ["x", *act], ["xq"]),
        ("DequantizeLinear", ["xq", *act], ["xd"]),
        ("DequantizeLinear", ["w1", *wgt], ["w1d"]),
        ("Conv", ["xd", "w1d"], ["a"], pads),
        ("QuantizeLinear", ["a", *act], ["aq"]),
        ("DequantizeLinear", ["aq", *act], ["ad"]),
        ("DequantizeLinear", ["w2", *wgt], ["w2d"]),
        ("Conv", ["ad", "w2f" if middle == "float" else "w2d"], ["b"], pads),
        *([("Abs", ["b"], ["b2"])] if middle == "abs" else []),
        ("QuantizeLinear", ["b2" if middle == "abs" else "b", *act], ["bq"]),
        ("DequantizeLinear", ["bq", *act], ["bd"]),
        ("Reshape", ["bd", "flat"], ["f"]),
        ("QuantizeLinear", ["f", *act], ["fq"]),
        ("DequantizeLinear", ["fq", *act], ["fd"]),
        ("DequantizeLinear", ["w3", *wgt], ["w3d"]),
        ("Gemm", ["fd", "w3d"], ["scores"]),
    ]
    used = {name for node in nodes for name in node[1]}
    return model(
        nodes,
        inputs={"x": ("float32", ("batch", 3, 6, 6))},
        outputs={"scores": ("float32", ("batch", 4))},
        initializers={name: array for name, array in tensors.items() if name in used},
    )


@pytest.fixture
def write(tmp_path):
    def written(content, name="model.onnx"):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return written


MACS = {"Conv": (8 * 36 * 27, 8 * 36 * 72), "Gemm": (8 * 36 * 4,)}


@needs_onnx
def test_every_layer_of_an_int8_chain_is_int8_and_its_macs_are_counted(write):
    found = audit(write(chain()), timed=False)
    assert [layer.kernel for layer in found.layers] == ["QLinearConv", "QLinearConv", "QGemm"]
    assert [layer.macs for layer in found.layers] == [*MACS["Conv"], *MACS["Gemm"]]
    assert (found.int8_layers, found.int8_macs_share) == (3, 1.0)
    assert found.float_islands == ()
    assert found.verdict == "3 of 3 layers run in int8, 100% of the multiply-accumulates"


@needs_onnx
def test_a_layer_left_in_float_is_an_island_with_its_reason_and_a_remedy(write):
    found = audit(write(chain(middle="float")), timed=False)
    middle = found.layers[1]
    assert (middle.int8, found.int8_layers) == (False, 2)
    assert (
        middle.why_not == "the file leaves it in float between int8 layers: its weights are float32"
    )
    assert "exclude" in middle.remedy
    assert found.int8_macs == MACS["Conv"][0] + MACS["Gemm"][0]
    assert len(found.float_islands) == 1
    assert any("conv7" in name or "b_nchwc" in name for name in found.float_islands[0])


@needs_onnx
def test_the_audit_shows_what_the_session_option_prevents(write):
    open_to_all = SessionOptions(disabled_optimizers=())
    assert audit(write(chain(middle="float")), open_to_all, timed=False).int8_layers == 3


@needs_onnx
def test_an_operator_between_convolution_and_quantizelinear_is_named(write):
    found = audit(write(chain(middle="abs")), timed=False)
    assert "its result goes to Abs" in found.layers[1].why_not


@needs_onnx
def test_a_float_model_is_said_to_be_float_with_no_islands(write):
    content = model(
        [("Gemm", ["x", "w"], ["y"])],
        inputs={"x": ("float32", ("batch", 6))},
        outputs={"y": ("float32", ("batch", 4))},
        initializers={"w": np.ones((6, 4), F32)},
    )
    found = audit(write(content), timed=False)
    assert (found.macs, found.int8_macs, found.conversions) == (24, 0, 0)
    assert "neither its weights nor its input are quantized" in found.layers[0].why_not
    assert found.float_islands == ()


@needs_onnx
def test_nodes_without_names_are_told_apart(write):
    twin = onnx.load_from_string(chain())
    for node in twin.graph.node:
        node.name = ""
    found = audit(write(twin.SerializeToString()), timed=False)
    assert [layer.name for layer in found.layers] == ["Conv:a", "Conv:b", "Gemm:scores"]
    assert found.int8_layers == 3


BRIEF = Bench(processes=5, sessions_per_process=1, rounds=1, block_ms=0.1, batch=1)


@needs_onnx
def test_layers_and_whole_calls_are_timed_beside_those_of_the_other_model(write):
    ours, theirs = write(chain()), write(chain(middle="float"), "float.onnx")
    heard = []
    found = audit(
        ours, against=theirs, race_settings=BRIEF, on_progress=lambda *at: heard.append(at)
    )
    assert all(layer.time_us > 0 and layer.reference_us > 0 for layer in found.layers)
    parts = found.times
    assert 0 < parts.layers_us <= parts.total_us
    assert parts.conversions_us > 0
    assert 0 < found.speedup.low <= found.speedup.value <= found.speedup.high
    ratio = found.reference_times.total_us / found.times.total_us
    assert ratio == pytest.approx(found.speedup.value)
    assert found.reference_int8_layers == 2
    assert heard[-1] == (5, 5)
    assert found.verdict.count("3 of 3 layers run in int8") == 1


@needs_onnx
def test_a_model_of_other_samples_is_nothing_to_be_held_against(write):
    other = write(linear(np.ones((6, 4))), "other.onnx")
    with pytest.raises(
        UserError, match=r"other\.onnx: takes samples of shape \(6,\) and .*\(3, 6, 6\)"
    ):
        audit(write(chain()), against=other)


@needs_onnx
def test_without_a_race_layers_are_timed_and_no_speed_up_is_claimed(write):
    ours, theirs = write(chain()), write(chain(middle="float"), "float.onnx")
    found = audit(ours, against=theirs, race_settings=None)
    assert all(layer.reference_us > 0 for layer in found.layers)
    assert found.speedup is None
    assert found.verdict == "3 of 3 layers run in int8, 100% of the multiply-accumulates"


@pytest.mark.parametrize(
    ("theirs", "slower"),
    [
        ([20.0, 20.0, 20.0], True),
        ([20.0, 29.0, 20.0], False),
        ([28.0, 28.0, 28.0], False),
        ([0.0, 0.0, 0.0], False),
        ([], False),
    ],
    ids=["each time", "not each time", "hardly", "too short to tell", "nothing beside it"],
)
def test_a_layer_is_slower_where_it_was_so_each_time(theirs, slower):
    ours = [{"stem": 30.0}] * 3
    assert _slower(ours, [{"stem": took} for took in theirs], "stem") == slower


def test_less_than_a_microsecond_makes_no_layer_slower():
    assert not _slower([{"dense": 3.5}] * 5, [{"dense": 3.0}] * 5, "dense")


@needs_onnx
def test_the_command_prints_the_verdict_last_and_json_for_machines(write):
    path = str(write(chain(middle="float")))
    printed = CliRunner().invoke(cli, ["audit", path])
    assert printed.exit_code == 0
    assert "2 of 3 layers run in int8" in printed.output.splitlines()[-1]
    assert "float island: " in printed.output
    machine = CliRunner().invoke(cli, ["audit", path, "--json"])
    assert json.loads(machine.output)["int8_layers"] == 2


@needs_onnx
def test_a_file_that_is_no_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        audit(tmp_path / "none.onnx")


@pytest.mark.skipif(onnx is not None, reason="onnx is installed here")
def test_without_onnx_the_audit_names_the_extra(write):
    with pytest.raises(MissingExtraError, match="compress"):
        audit(write(chain()))


def on(target, monkeypatch):
    monkeypatch.setattr("deploy.audit.look.this_target", lambda: target)
    for room in ("kernels", "session"):
        monkeypatch.setattr(f"deploy.{room}.fast_sums_overflow", lambda: target == "x86-avx2")


@needs_onnx
def test_layers_whose_sums_can_overflow_here_are_named_with_the_way_out(write, monkeypatch):
    here = fast_sums_overflow()
    on("x86-avx2", monkeypatch)
    found = audit(write(chain()), timed=False)
    assert len(found.saturating) == 3
    (said,) = [line for line in table(found) if line.startswith("warning: ")]
    assert "int8 sums of 3 of 3 layers" in said
    assert 'quantize with target = "x86-avx2"' in said
    # Elsewhere ONNX Runtime may have nothing to do about it, so that the weights stay as they are.
    assert found.exact_sums or not here
    fast = audit(write(chain()), SessionOptions(exact_sums=False), timed=False)
    assert not fast.exact_sums
    assert "wrong here" in fast.saturation
    exact = msgspec.structs.replace(fast, exact_sums=True)
    assert "added exactly here" in exact.saturation
    on("x86-vnni", monkeypatch)
    assert audit(write(chain()), timed=False).saturating == ()
