"""From a tf-keras model to the bytes of a ``.tflite`` file, in float or with int8 arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.task import Task
from compress.export.names import layer_scopes
from compress.export.parity import require_parity
from compress.export.to_onnx import why_not_exported
from compress.networks.named_layers import named_layers
from deploy.errors import UserError, needs_extra
from deploy.quiet import stderr_aside
from deploy.session import ModelMetadata, open_model
from deploy.tflite import KERNEL, METADATA, computes_in_int8, layer_name, read_tflite

_SAMPLES = 256  # real ones, on which a float file must agree with Keras
_ALIGNMENT = 16  # bytes; schema.fbs asks for it, and kernels of 32-bit Arm need it
_LEAST_WEIGHTS = 1024
"""TensorFlow's converter leaves smaller kernels in float in the dynamic form."""


class LiteRt(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    tag_field="kind",
    tag="litert",
):
    """The same network as a ``.tflite`` file for LiteRT, from a variant that is a Keras model.

    Input and output stay float32 in every form, so that preprocessing and scores are those of the
    other variants. A device needs the extra ``litert``; docs/runtimes.md says when it pays.
    """

    form: Literal["float", "dynamic", "int8"] = "int8"
    """"float" computes as Keras does, which is proven on samples; "dynamic" stores int8 weights
    and quantizes every activation anew on each run; "int8" computes in int8 throughout, with
    ranges from the calibration samples."""
    tolerance: Annotated[float, Meta(gt=0, le=1)] = 1e-4
    """For "float": largest difference from Keras allowed in any output; of outputs above 1, a
    share of the largest."""


def to_tflite(model: Any, step: LiteRt, task: Task) -> bytes:
    """Return a built tf-keras model as a ``.tflite`` file, opened in LiteRT and tried.

    Weights are named after the Keras layers, input and output as in Keras. Equal models give
    equal bytes.

    Args:
        model: one input, one output; left alone.
        step: the form.
        task: ``calibration.x`` gives the ranges of "int8"; ``validation.x`` proves it.

    Raises:
        UserError: if the model cannot be converted, or takes other samples than the task's.
        MissingExtraError: if TensorFlow or LiteRT is not installed.
        ParityError: if "float" gives other numbers than Keras, or any form gives other numbers for
            one sample than for the same sample in a batch.
    """
    why_not = why_not_exported(model)
    if why_not is not None:
        raise UserError(f"model {model.name!r}: {why_not}")
    with needs_extra("litert"):
        import ai_edge_litert.interpreter  # noqa: F401  # before the work, not after it
    taken = tuple(model.inputs[0].shape)[1:]
    if task.validation.x.shape[1:] != taken:
        raise UserError(
            f"model {model.name!r}: takes samples of shape {taken}, but those of the data have "
            f"{task.validation.x.shape[1:]} after preprocessing; give the data that it was made for"
        )
    content = _named_after_layers(_convert(model, step, task.calibration.x), model)
    _prove(model, content, step, task.validation.x[:_SAMPLES])
    return content


def with_metadata(content: bytes, metadata: ModelMetadata) -> bytes:
    """Return a ``.tflite`` file that carries ``metadata`` beside its graph."""
    schema = _schema()
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    text = msgspec.json.encode(metadata.to_props(), order="deterministic")
    entry, buffer = schema.MetadataT(), schema.BufferT()
    entry.name, entry.buffer = METADATA, len(model.buffers)
    buffer.data = np.frombuffer(text, np.uint8)
    kept = [known for known in model.metadata or () if known.name != METADATA.encode()]
    model.buffers, model.metadata = [*model.buffers, buffer], [*kept, entry]
    return _packed(model)


def reasons_in_float(content: bytes, step: LiteRt) -> dict[str, str]:
    """Say of every layer that a quantized form computes in float all the same why it does."""
    if step.form == "float":
        return {}
    model = read_tflite(content)
    return {
        layer_name(op, model, weight): (
            f"TensorFlow's converter leaves kernels of fewer than {_LEAST_WEIGHTS:,} weights in float"
            if weight.stored().size < _LEAST_WEIGHTS
            else "TensorFlow's converter left it in float"
        )
        for op, weight in model.weighted()
        if not computes_in_int8(model, op, weight)
    }


def _convert(model: Any, step: LiteRt, calibration: npt.NDArray[Any]) -> bytes:
    with needs_extra("compress"):
        import tensorflow as tf
        import tf_keras

    if step.form == "int8" and isinstance(model.layers[-1], tf_keras.layers.Rescaling):
        # On one grid of 256 steps for all targets, metres would drown beside kilograms.
        *_, last = model.layers
        standard = tf_keras.Model(model.inputs, last.input, name=model.name)
        content = _convert(standard, step, calibration)
        return _rescaled(content, np.asarray(last.scale), np.asarray(last.offset))
    (tensor,) = model.inputs
    signature = tf.TensorSpec(tensor.shape, tensor.dtype, name=model.input_names[0])
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], model)
    if step.form != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if step.form == "int8":
        converter.representative_dataset = _one_by_one(calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with stderr_aside(drop=True):
            return bytes(converter.convert())
    # The converter raises whatever its passes meet: ConverterError, ValueError, RuntimeError …
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model {model.name!r}: TensorFlow cannot convert it to LiteRT ({step.form}): {reason}"
        ) from error


def _rescaled(content: bytes, scale: npt.NDArray[Any], offset: npt.NDArray[Any]) -> bytes:
    """Return a file whose float32 output is multiplied with ``scale``, and ``offset`` added to it."""
    schema = _schema()
    model = schema.ModelT.InitFromPackedBuf(bytearray(content), 0)
    (graph,) = model.subgraphs
    kinds = schema.BuiltinOperator, schema.BuiltinOptions
    for kind, options, name, values in (
        ("MUL", schema.MulOptionsT(), "unit/scale", scale),
        ("ADD", schema.AddOptionsT(), "unit/offset", offset),
    ):
        given = graph.outputs[0]
        buffer, code, operator = schema.BufferT(), schema.OperatorCodeT(), schema.OperatorT()
        buffer.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
        code.deprecatedBuiltinCode = code.builtinCode = getattr(kinds[0], kind)
        code.version = 1
        constant, result = schema.TensorT(), schema.TensorT()
        constant.name, constant.shape = name.encode(), list(values.shape)
        constant.buffer = len(model.buffers)
        result.name, result.shape = f"{name}d".encode(), graph.tensors[given].shape
        result.shapeSignature = graph.tensors[given].shapeSignature
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs = [given, len(graph.tensors)]
        operator.outputs = [len(graph.tensors) + 1]
        operator.builtinOptionsType = getattr(kinds[1], f"{kind.title()}Options")
        operator.builtinOptions = options
        model.buffers = [*model.buffers, buffer]
        model.operatorCodes = [*model.operatorCodes, code]
        graph.tensors = [*graph.tensors, constant, result]
        graph.operators = [*graph.operators, operator]
        graph.outputs = operator.outputs
        for signature in model.signatureDefs or ():
            for output in signature.outputs:
                output.tensorIndex = operator.outputs[0]
    return _packed(model)


def _one_by_one(x: npt.NDArray[Any]) -> Callable[[], Iterator[list[npt.NDArray[Any]]]]:
    return lambda: ([x[index : index + 1]] for index in range(len(x)))


def _prove(model: Any, content: bytes, step: LiteRt, samples: npt.NDArray[Any]) -> None:
    opened = open_model(content)
    fitting = opened.cast(samples)
    if step.form == "float":

        def keras(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.asarray(model(x, training=False))

        require_parity(keras, opened.run, fitting, tolerance=step.tolerance)

    def singly(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate([opened.run(x[i : i + 1]) for i in range(len(x))])

    # One sample and a batch are two interpreters, and may be two sets of kernels.
    one_step = 2**-7 if step.form != "float" else step.tolerance
    require_parity(singly, opened.run, fitting[:16], tolerance=one_step)


def _named_after_layers(content: bytes, model: Any) -> bytes:
    """Name the weights of each layer ``LAYER/kernel``, input and output as Keras does."""
    read = read_tflite(content)
    heavy = {
        name
        for name, layer in named_layers(model)
        if any(len(weight.shape) > 1 for weight in layer.weights)
    }
    scopes = {scope: name for scope, name in layer_scopes(model).items() if name in heavy}
    packed = _schema().ModelT.InitFromPackedBuf(bytearray(content), 0)
    (graph,) = packed.subgraphs
    names: dict[str, str] = {}
    for op, weight in read.weighted():
        made = read.tensors[op.outputs[0]].name
        layer = _owner(weight.name, scopes) or _owner(made, scopes)
        if layer is not None:
            names.setdefault(weight.name, layer + KERNEL)
    for tensor in graph.tensors:
        tensor.name = names.get(tensor.name.decode(), tensor.name.decode())
    graph.tensors[graph.inputs[0]].name = model.input_names[0]
    graph.tensors[graph.outputs[0]].name = model.output_names[0]
    return _packed(packed)


def _owner(name: str, scopes: Mapping[str, str]) -> str | None:
    """Return the Keras layer with weights in whose scope a tensor was made.

    The converter joins the names of what it fuses with semicolons.
    """
    for path in name.split(";"):
        parts = path.split("/")
        for length in range(len(parts), 0, -1):
            layer = scopes.get("/".join(parts[:length]))
            if layer is not None:
                return layer
    return None


def _schema() -> Any:
    with needs_extra("compress"):
        from tensorflow.lite.python import schema_py_generated
    return schema_py_generated


def _packed(model: Any) -> bytes:
    """Return a ``ModelT`` as a file, every buffer aligned as the runtime wants it."""
    import flatbuffers

    for buffer in model.buffers:
        if buffer.data is not None:
            buffer.Pack = _aligned(buffer)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _aligned(buffer: Any) -> Callable[[Any], Any]:
    """Return how a ``BufferT`` is packed, with its bytes at a multiple of 16.

    What the generated code does packs them at any byte.
    """
    schema = _schema()

    def pack(builder: Any) -> Any:
        data = np.asarray(buffer.data, np.uint8).tobytes()
        builder.StartVector(1, len(data), _ALIGNMENT)
        builder.head -= len(data)
        builder.Bytes[builder.head : builder.head + len(data)] = data
        place = builder.EndVector()
        schema.BufferStart(builder)
        schema.BufferAddData(builder, place)
        return schema.BufferEnd(builder)

    return pack
