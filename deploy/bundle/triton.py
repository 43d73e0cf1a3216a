"""A bundle as a model of Triton Inference Server: the layout of its model repository.

``config.pbtxt`` is the text of a ``ModelConfig`` message
(https://github.com/triton-inference-server/common/blob/main/protobuf/model_config.proto); its
parameters are those of Triton's ONNX Runtime backend.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path

import msgspec
import numpy as np

from deploy.bundle.container import MODEL
from deploy.bundle.manifest import Manifest, Port
from deploy.bundle.opened import Bundle
from deploy.errors import UserError
from deploy.session import open_model

MOST_IN_A_BATCH = 32
LABELS = "labels.txt"
_TYPES = {
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "int8": "TYPE_INT8",
    "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64", "bool": "TYPE_BOOL",
}  # fmt: skip


def write_triton(bundle: Bundle, repository: Path) -> Path:
    """Write a bundle's model into a model repository; whole or not at all.

    Args:
        bundle: an open bundle of an ONNX model.
        repository: the folder that Triton is given; the model gets a folder of its own in it.

    Returns:
        The folder of the model. Equal bundles give equal files.

    Raises:
        UserError: if it is no ONNX model, needs a session option that Triton cannot set, is there
            already, or the disk does not take it.
    """
    why_not = why_not_in_triton(bundle)
    if why_not is not None:
        raise UserError(f"{bundle.where}: {why_not}")
    said = bundle.manifest
    place = repository / said.name
    aside = repository / f".{uuid.uuid4().hex}"
    files = {
        "config.pbtxt": config(said).encode(),
        **({LABELS: _labels(said)} if _has_labels(said) else {}),
        "README.md": _readme(said).encode(),
        "1/model.onnx": bundle.model,
    }
    if place.exists():
        raise UserError(f"{place}: is there already; remove it, or give another name with --name")
    try:
        for name, content in files.items():
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_bytes(content)
        aside.rename(place)
    except OSError as error:
        raise UserError(f"{place}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place


def why_not_in_triton(bundle: Bundle) -> str | None:
    """Say why a bundle cannot be served by Triton as it was measured, or None if it can.

    Triton's backend cannot disable single optimizers. A model that answers otherwise without that
    option has layers in int8 there that were to stay in float.
    """
    if bundle.model_name != MODEL:
        return f"Triton's ONNX Runtime backend takes ONNX models, this is {bundle.model_name}"
    options = bundle.manifest.session
    if not options.disabled_optimizers:
        return None
    there = open_model(bundle.model, msgspec.structs.replace(options, disabled_optimizers=()))
    there.metadata = msgspec.structs.replace(
        there.metadata, preprocess=bundle.manifest.preprocess, labels=bundle.manifest.labels
    )
    scores = bundle.session().scores(bundle.golden.x)
    if np.array_equal(scores, there.scores(bundle.golden.x)):
        return None
    return (
        f"its layers in float need {', '.join(options.disabled_optimizers)} disabled, which Triton "
        'cannot do; quantize it with exclusion = "structural"'
    )


def config(manifest: Manifest) -> str:
    """Return ``config.pbtxt``."""
    free = manifest.input.batch is None
    lines = [
        f"name: {json.dumps(manifest.name)}",
        'platform: "onnxruntime_onnx"',
        f"max_batch_size: {MOST_IN_A_BATCH if free else 0}",
        *_port("input", manifest.input),
        *_port("output", manifest.output, labels=_has_labels(manifest)),
        "instance_group [ { kind: KIND_CPU count: 1 } ]",
        *(["dynamic_batching { }"] if free else []),
        *_parameter("intra_op_thread_count", str(manifest.session.threads)),
        *_parameter("inter_op_thread_count", "1"),
        *_parameter("execution_mode", "0"),
    ]
    return "\n".join(lines) + "\n"


def _port(kind: str, port: Port, *, labels: bool = False) -> list[str]:
    # With a fixed batch, Triton adds no axis of its own: all of them are told.
    dims = port.shape if port.batch is None else (port.batch, *port.shape)
    return [
        f"{kind} [",
        "  {",
        f"    name: {json.dumps(port.name)}",
        f"    data_type: {_TYPES[port.dtype]}",
        f"    dims: [ {', '.join(map(str, dims))} ]",
        *([f'    label_filename: "{LABELS}"'] if labels else []),
        "  }",
        "]",
    ]


def _parameter(key: str, value: str) -> list[str]:
    return [f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}']


def _has_labels(manifest: Manifest) -> bool:
    """Say whether scores belong to labels: Triton then gives their names with the best of them."""
    return manifest.goal.task in {"classification", "multi_label"}


def _labels(manifest: Manifest) -> bytes:
    return "".join(f"{' '.join(label.split())}\n" for label in manifest.labels).encode()


def _holds(manifest: Manifest) -> str:
    """Say what the output is, which Triton does not."""
    match manifest.goal.task:
        case "classification":
            return f"{manifest.scores}, one a class, in the order of `{LABELS}`"
        case "multi_label":
            return (
                f"{manifest.scores}, one a label, in the order of `{LABELS}`: a sample has the "
                "labels with one half or more"
            )
        case "regression":
            unit = f" in {manifest.goal.unit}" if manifest.goal.unit else ""
            return f"values{unit}, in this order: {', '.join(manifest.labels)}"
        case "reconstruction":
            return (
                "what the model makes of its input: the mean square of the difference of the two "
                "is the anomaly score"
            )


def _readme(manifest: Manifest) -> str:
    ops = " → ".join(
        f"`{msgspec.json.encode(op).decode()}`" for op in manifest.preprocess
    )  # as in manifest.json
    raw, given = manifest.raw, manifest.input
    return f"""# {manifest.name} {manifest.version} for Triton Inference Server

`tritonserver --model-repository` takes the folder that this one lies in.

**Preprocessing is not part of the model here.** A client has to send the input
`{given.name}` ({given.dtype}, {" × ".join(map(str, given.shape))} a sample) as it comes out of:
{ops or "nothing: samples are sent as they are"}, applied to a raw sample
({raw.dtype}, {" × ".join(map(str, raw.shape))}). `deploy.preprocess.apply` does this in Python.

The output `{manifest.output.name}` holds {_holds(manifest)}.
Made by lightship {manifest.lightship}; model licence: {manifest.licences.model}; data: {manifest.licences.data}.
"""
