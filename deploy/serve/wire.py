"""The messages of the Open Inference Protocol v2, with the binary tensor extension.

The protocol: https://github.com/kserve/open-inference-protocol. The extension:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Meta, Raw, UnsetType

from deploy.serve.refused import RefusedError

Array = npt.NDArray[Any]

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
"""numpy's names of element types, and the protocol's."""

_Size = Annotated[int, Meta(ge=0, le=1 << 40)]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as metadata states it: the first axis of ``shape``, of samples, is left out."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def stated(self) -> dict[str, Any]:
        """Return it as the model's metadata has it: -1 stands for any number of samples."""
        return {"name": self.name, "datatype": self.datatype, "shape": [-1, *self.shape]}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that a client asks for."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks.

    Attributes:
        samples: raw samples ``(n, ...)``, n >= 1.
        outputs: what to answer, in this order.
        id: given back with the answer.
        timeout_s: how long the client would wait in the queue, or None if it does not say.
    """

    samples: Array
    outputs: tuple[Wanted, ...]
    id: str | None
    timeout_s: float | None


class _InputParameters(msgspec.Struct):
    binary_data_size: _Size | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int | None = None


class _RequestParameters(msgspec.Struct):
    binary_data_output: bool | None = None
    timeout: Annotated[int, Meta(ge=0)] | None = None
    """Microseconds, an extension of Triton's."""


class _Input(msgspec.Struct):
    name: str
    shape: Annotated[list[_Size], Meta(max_length=32)]
    datatype: str
    parameters: _InputParameters | None = None
    data: Raw | UnsetType = UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Request(msgspec.Struct):
    inputs: Annotated[list[_Input], Meta(max_length=64)]
    id: str | None = None
    parameters: _RequestParameters | None = None
    outputs: Annotated[list[_Output], Meta(max_length=64)] | None = None


_decode_request = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode
# What msgspec raises on foreign bytes; a UnicodeDecodeError is a ValueError.
_MALFORMED = (msgspec.MsgspecError, ValueError, RecursionError)


class Reader:
    """Reads requests to one model.

    Args:
        tensor: the only input.
        dtype: its element type.
        outputs: the names of what can be asked for.
    """

    def __init__(self, tensor: TensorSpec, dtype: np.dtype[Any], outputs: tuple[str, ...]) -> None:
        self._tensor, self._dtype, self._outputs = tensor, dtype, outputs
        element = _element(dtype)
        nested: Any = element
        for _ in range(1 + len(tensor.shape)):
            nested = list[nested]
        self._flat = msgspec.json.Decoder(list[element])  # type: ignore[valid-type]  # made above
        self._nested = msgspec.json.Decoder(nested)
        self._sample_size = math.prod(tensor.shape)

    def read(self, body: bytes, json_bytes: int | None) -> Asked:
        """Read one request.

        Args:
            body: the whole of it.
            json_bytes: ``Inference-Header-Content-Length``: where the JSON ends and the binary
                tensors begin, or None if it is all JSON.

        Raises:
            RefusedError: 400, if it is not what the model takes.
        """
        if json_bytes is not None and json_bytes > len(body):
            raise RefusedError(
                400,
                f"Inference-Header-Content-Length is {json_bytes}, the body has {len(body)} bytes",
            )
        text = body if json_bytes is None else body[:json_bytes]
        try:
            request = _decode_request(text)
        except _MALFORMED as error:
            raise RefusedError(400, f"malformed request: {_one_line(error)}") from error
        if len(request.inputs) != 1:
            raise RefusedError(
                400, f"inputs: must be one, {self._tensor.name!r}, got {len(request.inputs)}"
            )
        tail = memoryview(body)[len(text) :]
        samples = self._samples(request.inputs[0], tail)
        about = request.parameters or _RequestParameters()
        return Asked(
            samples=samples,
            outputs=self._wanted(request.outputs, binary=bool(about.binary_data_output)),
            id=request.id,
            timeout_s=about.timeout / 1e6 if about.timeout else None,
        )

    def _samples(self, given: _Input, tail: memoryview) -> Array:
        wanted, name = self._tensor, self._tensor.name
        if given.name != name:
            raise RefusedError(400, f"inputs[0].name: must be {name!r}, got {given.name!r}")
        if given.datatype != wanted.datatype:
            raise RefusedError(
                400, f"{name}: datatype must be {wanted.datatype}, got {given.datatype!r}"
            )
        shape = tuple(given.shape)
        if len(shape) != 1 + len(wanted.shape) or shape[1:] != wanted.shape or shape[0] == 0:
            raise RefusedError(
                400,
                f"{name}: shape must be {[-1, *wanted.shape]} with one sample or more in front, "
                f"got {list(shape)}",
            )
        size_bytes = given.parameters.binary_data_size if given.parameters else None
        needed = shape[0] * self._sample_size * self._dtype.itemsize
        if size_bytes is not None:
            if not isinstance(given.data, UnsetType):
                raise RefusedError(400, f"{name}: has data and binary_data_size; give one of them")
            if not size_bytes == needed == len(tail):
                raise RefusedError(
                    400,
                    f"{name}: {list(shape)} of {wanted.datatype} are {needed} bytes; "
                    f"binary_data_size is {size_bytes}, after the JSON come {len(tail)}",
                )
            return self._from_bytes(tail, shape)
        if len(tail):
            raise RefusedError(
                400, f"{name}: {len(tail)} bytes after the JSON, but no binary_data_size"
            )
        if isinstance(given.data, UnsetType):
            raise RefusedError(400, f"{name}: has neither data nor binary_data_size")
        return self._from_json(given.data, shape)

    def _from_bytes(self, tail: memoryview, shape: tuple[int, ...]) -> Array:
        little = np.frombuffer(tail, dtype=self._dtype.newbyteorder("<")).reshape(shape)
        if self._dtype.kind == "b" and (np.frombuffer(tail, np.uint8) > 1).any():
            raise RefusedError(400, f"{self._tensor.name}: a BOOL is a byte of 0 or 1")
        return little.astype(self._dtype, copy=False)

    def _from_json(self, data: Raw, shape: tuple[int, ...]) -> Array:
        name, text = self._tensor.name, bytes(data)
        is_nested = text[1:].lstrip().startswith(b"[")
        try:
            values = (self._nested if is_nested else self._flat).decode(text)
        except _MALFORMED as error:
            raise RefusedError(400, f"{name}.data: {_one_line(error)}") from error
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(values, dtype=self._dtype)
        except (ValueError, OverflowError) as error:  # ragged; or beyond 64 bits
            raise RefusedError(400, f"{name}.data: {_one_line(error)}") from error
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise RefusedError(
                400, f"{name}.data: {self._tensor.datatype} cannot hold a number as large"
            )
        if array.shape != (shape if is_nested else (math.prod(shape),)):
            raise RefusedError(
                400, f"{name}.data: is of shape {list(array.shape)}, shape says {list(shape)}"
            )
        return array.reshape(shape)

    def _wanted(self, outputs: list[_Output] | None, *, binary: bool) -> tuple[Wanted, ...]:
        if not outputs:
            return tuple(Wanted(name, binary) for name in self._outputs)
        wanted = []
        for output in outputs:
            if output.name not in self._outputs:
                raise RefusedError(
                    400,
                    f"outputs: there is no {output.name!r}; there are {', '.join(self._outputs)}",
                )
            about = output.parameters or _OutputParameters()
            if about.classification:
                raise RefusedError(400, "outputs: classification is not offered; ask for label")
            own = about.binary_data
            wanted.append(Wanted(output.name, binary if own is None else own))
        if len({output.name for output in wanted}) != len(wanted):
            raise RefusedError(400, "outputs: an output is asked for twice")
        return tuple(wanted)


def answer(
    head: dict[str, Any], asked: Asked, tensors: list[tuple[TensorSpec, Array | list[str]]]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and where its JSON ends if binary tensors follow.

    Args:
        head: what stands beside the outputs.
        asked: what was asked.
        tensors: the outputs in the order of ``asked.outputs``; a list is of texts.
    """
    outputs, tails = [], []
    for wanted, (spec, values) in zip(asked.outputs, tensors, strict=True):
        shape = [len(asked.samples), *spec.shape]
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": shape}
        if wanted.binary:
            tail = _to_bytes(values)
            output["parameters"] = {"binary_data_size": len(tail)}
            tails.append(tail)
        else:
            output["data"] = values if isinstance(values, list) else values.ravel().tolist()
        outputs.append(output)
    text = _encode({**head, **({"id": asked.id} if asked.id else {}), "outputs": outputs})
    return (b"".join([text, *tails]), len(text)) if tails else (text, None)


def _to_bytes(values: Array | list[str]) -> bytes:
    if isinstance(values, list):
        encoded = [value.encode() for value in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _element(dtype: np.dtype[Any]) -> Any:
    """Return the type that one JSON value must have: a bool is no number, nor the other way."""
    if dtype.kind == "b":
        return bool
    if dtype.kind == "f":
        return float
    limits = np.iinfo(dtype)
    if dtype == np.uint64:  # msgspec's own limit is that of int64; numpy refuses what is larger
        return Annotated[int, Meta(ge=0)]
    return Annotated[int, Meta(ge=int(limits.min), le=int(limits.max))]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
