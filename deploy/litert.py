"""LiteRT as a runtime: it opens ``.tflite`` files, with XNNPACK's kernels.

The package is ``ai-edge-litert`` (extra ``litert``), TensorFlow Lite under its new name. It checks
the FlatBuffer before it follows an offset in it; ``deploy.tflite`` has done so before, too.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.errors import UserError, needs_extra
from deploy.quiet import stderr_aside
from deploy.tflite import METADATA, read_tflite

_PACKAGE = "ai-edge-litert"
_TYPES = {"float32", "float16", "int8", "uint8", "int32", "int64"}
_spoke = threading.Event()


class LiteRt:
    """An open ``.tflite`` model with one input and one output.

    Input and output are as in the file: models of ours take and give float32, whatever they
    compute in. Several threads may use it; they wait for each other, as an interpreter holds the
    values of one run.

    Attributes:
        input_name: as the file names it.
        input_shape: of one sample, without the batch axis.
        input_dtype: element type of the input.
        fixed_batch: 1 if it takes one sample at a time, None if the batch axis is free.
        output_name: as the file names it.
        props: what the file says of itself, as in ONNX's ``metadata_props``.
    """

    def __init__(self, content: bytes, *, threads: int) -> None:
        facts = read_tflite(content)
        if len(facts.inputs) != 1 or len(facts.outputs) != 1:
            raise UserError(
                f"needs a model with one input and one output, got {len(facts.inputs)} and "
                f"{len(facts.outputs)}"
            )
        given, made = (facts.tensors[number] for number in (*facts.inputs, *facts.outputs))
        if given.dtype not in _TYPES:
            raise UserError(f"input type {given.dtype} is not supported")
        if given.free not in {(), (0,)} or given.shape[:1] != (1,):
            raise UserError(
                "the input needs a free batch axis (or one of 1) in front and no other free axis, "
                f"got shape {given.shape}, of which axes {given.free} are free"
            )
        self.input_name = given.name
        self.input_shape = given.shape[1:]
        self.input_dtype: np.dtype[Any] = np.dtype(given.dtype)
        self.fixed_batch = None if given.free else 1
        self.output_name = made.name
        self.props = _props(facts.metadata.get(METADATA, b"{}"))
        self._input, self._output = facts.inputs[0], facts.outputs[0]
        self._content, self._threads = content, threads
        self._lock = threading.Lock()
        self._one = self._interpreter(1)
        self._many: Any = None
        self._many_batch = 0

    def run(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the output ``(n, ...)`` for inputs ``(n, ...)`` of the input's type.

        A second interpreter serves batches, because to change the batch of one costs more than
        many an answer.
        """
        batch = len(inputs)
        with self._lock:
            interpreter = self._one
            if batch != 1:
                if self._many_batch != batch:
                    self._many = self._resized(batch)
                    self._many_batch = batch
                interpreter = self._many
            interpreter.set_tensor(self._input, inputs)
            interpreter.invoke()
            return np.asarray(interpreter.get_tensor(self._output))

    def _resized(self, batch: int) -> Any:
        self._many_batch = 0  # should it fail, nothing is left half-way
        if self._many is None:
            return self._interpreter(batch)
        self._many.resize_tensor_input(self._input, (batch, *self.input_shape), strict=True)
        self._many.allocate_tensors()
        return self._many

    def _interpreter(self, batch: int) -> Any:
        with needs_extra("litert"):
            from ai_edge_litert.interpreter import Interpreter
        with _quiet_once():
            interpreter = Interpreter(model_content=self._content, num_threads=self._threads)
            if batch != 1:
                interpreter.resize_tensor_input(
                    self._input, (batch, *self.input_shape), strict=True
                )
            interpreter.allocate_tensors()
        return interpreter


def litert_version() -> str | None:
    """Return the installed release of LiteRT, or None."""
    import importlib.metadata  # here: it takes longer to import than a small model to open

    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None


def _props(text: bytes) -> dict[str, str]:
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"metadata: entry {METADATA!r} does not decode ({error})") from error


def _quiet_once() -> contextlib.AbstractContextManager[None]:
    """Keep LiteRT from announcing XNNPACK on stderr, which it does once a process."""
    if _spoke.is_set():
        return contextlib.nullcontext()
    _spoke.set()
    return stderr_aside(drop=True)
