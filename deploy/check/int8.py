"""Which products a model really ran in 8 bits, from ONNX Runtime's profiler: no onnx is needed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt

from deploy.kernels import FLOAT_OPERATORS, INT8_OPERATORS
from deploy.record import Record, SessionOptions
from deploy.session import profiling, start_session
from deploy.tflite import Tflite, computes_in_int8, is_tflite, layer_name, read_tflite


class Products(Record, frozen=True):
    """The nodes that multiplied matrices or convolved in one run, as the session names them."""

    int8: tuple[str, ...]
    floating: tuple[str, ...]


def products(
    model: bytes, inputs: npt.NDArray[Any], options: SessionOptions = SessionOptions()
) -> Products:
    """Run a model once and say which of its products were int8 kernels.

    LiteRT tells no kernels: of a model for it, the types in the file say it, by which it chooses.

    Args:
        model: bytes that ``open_model`` has accepted.
        inputs: model inputs ``(1, ...)``.
        options: how it is opened.
    """
    if is_tflite(model[:8]):
        return _by_type(read_tflite(model))
    with tempfile.TemporaryDirectory(prefix="lightship-check-") as folder:
        session = start_session(model, options, profiling(Path(folder, "profile")))
        session.run(None, {session.get_inputs()[0].name: inputs})
        events = msgspec.json.decode(Path(session.end_profiling()).read_bytes())
    ran = [
        (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    return Products(
        int8=tuple(name for name, kind in ran if kind in INT8_OPERATORS),
        floating=tuple(name for name, kind in ran if kind in FLOAT_OPERATORS),
    )


def _by_type(model: Tflite) -> Products:
    ran = [
        (layer_name(op, model, weight), computes_in_int8(model, op, weight))
        for op, weight in model.weighted()
    ]
    return Products(
        int8=tuple(name for name, int8 in ran if int8),
        floating=tuple(name for name, int8 in ran if not int8),
    )
