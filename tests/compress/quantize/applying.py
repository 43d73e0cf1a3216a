"""Steps on ONNX models, carried out on the small network, and looks at what they made."""

from compress.quantize.dynamic import QuantizeDynamic, quantize_dynamic
from compress.quantize.static import QuantizeStatic, quantize_static
from compress.quantize.storage import ToFloat16, WeightOnly, to_float16, weight_only
from deploy.graph import array_of
from deploy.session import open_model
from tests.compress.quantize.networks import images, task_with


def apply(model, step, x=None):
    match step:
        case QuantizeStatic():
            return quantize_static(model, step, task_with(images() if x is None else x))
        case QuantizeDynamic():
            return quantize_dynamic(model, step)
        case ToFloat16():
            return to_float16(model, step)
        case WeightOnly():
            return weight_only(model, step)


def run(model, x):
    return open_model(model.SerializeToString()).run(x)


def stored(model, name):
    return next(array_of(tensor) for tensor in model.graph.initializer if tensor.name == name)


def element_types(model, kind, index):
    """Return the types of the constants that are input ``index`` of the nodes of one kind."""
    constants = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        constants[node.input[index]]
        for node in model.graph.node
        if node.op_type == kind and node.input[index] in constants
    }
