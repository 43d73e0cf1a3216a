import numpy as np
import pytest

from deploy.errors import UserError
from deploy.needs import graph_facts, least_onnxruntime
from tests.deploy import tiny_onnx
from tests.deploy.tiny_onnx import _bytes, _int


def test_versions_and_operators_are_read_from_the_bytes():
    facts = graph_facts(tiny_onnx.linear(np.eye(2), softmax=True))
    assert (facts.ir_version, facts.opsets) == (8, {"": 17})
    assert facts.operators == {"Gemm", "Softmax"}
    assert not facts.quantized


def one_node(operator, domain="", **settings):
    return tiny_onnx.model(
        [(operator, ["x"], ["y"], {}, domain)],
        inputs={"x": ("float32", (1,))},
        outputs={"y": ("float32", (1,))},
        **settings,
    )


@pytest.mark.parametrize(
    ("operator", "quantized"),
    [
        ("QuantizeLinear", True),
        ("DynamicQuantizeLinear", True),
        ("DequantizeLinear", False),  # of stored weights alone: what runs is float
        ("Relu", False),
    ],
)
def test_a_model_is_quantized_if_it_rounds_while_it_runs(operator, quantized):
    assert graph_facts(one_node(operator)).quantized is quantized


def test_operators_of_other_makers_carry_their_domain():
    facts = graph_facts(one_node("Gelu", "com.microsoft", opsets=(("", 17), ("com.microsoft", 1))))
    assert facts.operators == {"com.microsoft:Gelu"}
    assert facts.opsets == {"": 17, "com.microsoft": 1}
    assert least_onnxruntime(facts, "1.27.3") == "1.27"


def test_the_name_of_onnxs_own_domain_may_be_written_out():
    assert graph_facts(one_node("Relu", "ai.onnx", opsets=(("ai.onnx", 17),))).opsets == {"": 17}


@pytest.mark.parametrize(
    ("opset", "ir_version", "release"),
    [(13, 7, "1.10"), (17, 8, "1.12"), (17, 9, "1.15"), (21, 10, "1.18"), (22, 10, "1.32")],
)
def test_the_oldest_release_follows_from_opset_and_ir_version(opset, ir_version, release):
    facts = graph_facts(one_node("Relu", opsets=(("", opset),), ir_version=ir_version))
    assert least_onnxruntime(facts, "1.32.0") == release


def model_of(graph):
    return _int(1, 8) + _bytes(7, graph) + _bytes(8, _int(2, 17))


OUTSIDE = (
    _bytes(8, b"w") + _bytes(13, _bytes(1, b"location") + _bytes(2, b"/etc/passwd")) + _int(14, 1)
)


@pytest.mark.parametrize(
    "graph",
    [
        _bytes(5, OUTSIDE),
        _bytes(15, _bytes(1, OUTSIDE)),
        _bytes(1, _bytes(5, _bytes(5, OUTSIDE))),
        _bytes(1, _bytes(5, _bytes(6, _bytes(5, OUTSIDE)))),
        _bytes(5, _bytes(8, b"w") + _int(14, 1)),
        _bytes(5, _bytes(8, b"w") + _bytes(13, _bytes(1, b"location"))),
    ],
    ids=[
        "initializer",
        "sparse initializer",
        "attribute",
        "graph in a node",
        "no path",
        "a path alone",
    ],
)
def test_weights_in_another_file_are_found_wherever_they_hide(graph):
    with pytest.raises(UserError, match="keeps weights in another file"):
        graph_facts(model_of(graph))


def test_graphs_inside_graphs_do_not_exhaust_the_stack():
    graph = b""
    for _ in range(40):
        graph = _bytes(1, _bytes(5, _bytes(6, graph)))
    with pytest.raises(UserError, match="more than 32 deep"):
        graph_facts(model_of(graph))


def test_a_zip_file_is_told_from_a_model_and_a_cut_file_is_called_so():
    with pytest.raises(
        UserError, match="a zip file, as a Keras model and a bundle are; lightship ex"
    ):
        graph_facts(b"PK\x03\x04" + bytes(40))
    with pytest.raises(
        UserError, match="cut off, or of another kind: a field of 9 bytes where 2 are"
    ):
        graph_facts(b"\x0a\x09ab")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"\xff" * 20, b"ORTM" * 10, b"\x0a\xff\xff\xff\xff\x0f", _int(1, 8), b"\x08"],
)
def test_what_is_no_model_is_refused(data):
    with pytest.raises(UserError, match="is no ONNX model"):
        graph_facts(data)
