"""Which products a model really ran in 8 bits, from ONNX Runtime's profiler: no onnx is needed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy.typing as npt
import onnxruntime as ort

from deploy.kernels import FLOAT_OPERATORS, INT8_OPERATORS
from deploy.record import Record, SessionOptions
from deploy.session import ort_options


class Products(Record, frozen=True):
    """The nodes that multiplied matrices or convolved in one run, as the session names them."""

    int8: tuple[str, ...]
    floating: tuple[str, ...]


def products(
    model: bytes, inputs: npt.NDArray[Any], options: SessionOptions = SessionOptions()
) -> Products:
    """Run a model once and say which of its products were int8 kernels.

    Args:
        model: bytes that ``open_model`` has accepted.
        inputs: model inputs ``(1, ...)``.
        options: how it is opened.
    """
    settings = ort_options(options)
    settings.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="lightship-check-") as folder:
        settings.profile_file_prefix = str(Path(folder, "profile"))
        session = ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
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
