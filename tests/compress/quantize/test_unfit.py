import pytest
from onnx import TensorProto, helper

from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.static import QuantizeStatic
from compress.quantize.storage import ToFloat16, WeightOnly
from compress.quantize.unfit import why_already_quantized
from deploy.errors import UserError
from tests.compress.quantize.applying import apply
from tests.compress.quantize.networks import images, network

EACH = [
    QuantizeStatic(target="x86-vnni"),
    QuantizeDynamic(target="x86-vnni"),
    ToFloat16(),
    WeightOnly(),
]


@pytest.mark.parametrize("first", EACH, ids=repr)
@pytest.mark.parametrize("second", EACH, ids=repr)
def test_a_quantized_model_is_refused_with_the_reason(first, second):
    assert why_already_quantized(network()) is None
    with pytest.raises(UserError, match=r"quantized already|not float32 any more") as caught:
        apply(apply(network(), first), second)
    assert "give the float model" in str(caught.value)


@pytest.mark.parametrize("name", ["", "stem"])
def test_layers_that_cannot_be_told_apart_are_refused(name):
    model = network()
    next(node for node in model.graph.node if node.name == "conv").name = name
    with pytest.raises(UserError, match=f"names of their own, got '{name}'"):
        apply(model, WeightOnly())


def test_a_model_without_weights_is_refused():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        [value("x", TensorProto.FLOAT, (None, 2))],
        [value("y", TensorProto.FLOAT, (None, 2))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for step in EACH:
        with pytest.raises(UserError, match="with stored weights"):
            apply(model, step, images())
