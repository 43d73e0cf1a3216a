"""Model files and the records beside them."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compress.data.task import Task
from compress.export.facts import layer_facts
from compress.export.metadata import with_metadata
from compress.export.to_tflite import with_metadata as with_tflite_metadata
from compress.networks.named_layers import named_layers
from deploy.errors import UserError, needs_extra
from deploy.litert import litert_version
from deploy.preprocess import Preprocess
from deploy.record import (
    Artifact,
    Goal,
    LayerFacts,
    gzip_bytes_of,
    read_record,
    record_path,
    sha256_of,
)
from deploy.session import ModelMetadata, open_model
from deploy.tflite import layer_facts as tflite_layer_facts
from deploy.tflite import read_tflite

_STACK = (
    "lightship",
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorflow",
    "tensorflow-model-optimization",
    "tf-keras",
    "tf2onnx",
)


def stack_versions() -> dict[str, str]:
    """Return the installed versions of everything that shapes a model's bytes.

    Among them is whose kernels TensorFlow was asked to train with (``compress/__init__.py``).
    """
    asked = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "")
    kernels = {"1": "oneDNN", "0": "own"}.get(asked, "as TensorFlow chooses")
    with needs_extra("compress"):
        return {name: metadata.version(name) for name in _STACK} | {"kernels": kernels}


def describe(task: Task, *, step: Mapping[str, object], parent: str | None) -> ModelMetadata:
    """Return what a model made on a task says of itself.

    Args:
        task: gives the goal, the preprocessing, the labels and the licence of the data.
        step: the step that makes the model, as data.
        parent: sha256 of the file that it is made from, if it is made from one.
    """
    return ModelMetadata(
        step=dict(step),
        parent=parent,
        preprocess=task.preprocess,
        labels=task.labels,
        data=task.name,
        data_licence=task.licence,
        versions=stack_versions(),
        goal=task.goal,
    )


def save_onnx(
    model: Any,
    path: Path,
    about: ModelMetadata,
    *,
    seed: int,
    notes: Mapping[str, str],
    keras_agreement: float | None = None,
) -> Artifact:
    """Write an ONNX model that says what it is, and its record beside it as ``PATH.json``.

    Args:
        model: an ``onnx.ModelProto``; left alone.
        path: where the file goes.
        about: what the model says of itself.
        seed: seed of the step that made it.
        notes: why the step left layers alone, by layer name.
        keras_agreement: how often it was seen to answer as the Keras model, for the record.
    """
    import onnx

    described = with_metadata(model, about)
    replace_file(path, lambda aside: onnx.save_model(described, str(aside)))
    layers = layer_facts(onnx.load(str(path)), notes)
    return _save_record("onnx", path, about, seed, layers, keras_agreement=keras_agreement)


def save_tflite(
    content: bytes, path: Path, about: ModelMetadata, *, seed: int, notes: Mapping[str, str]
) -> Artifact:
    """Write a ``.tflite`` model that says what it is, and its record; as ``save_onnx``.

    LiteRT's release is among the versions, because it was part of the proof.
    """
    versions = {**about.versions, "ai-edge-litert": litert_version() or "not installed"}
    said = msgspec.structs.replace(about, versions=versions)
    described = with_tflite_metadata(content, said)
    replace_file(path, lambda aside: aside.write_bytes(described))
    layers = tflite_layer_facts(read_tflite(described), notes)
    return _save_record("tflite", path, said, seed, layers)


def save_keras(
    model: Any, path: Path, about: ModelMetadata, *, seed: int, notes: Mapping[str, str]
) -> Artifact:
    """Write a tf-keras model, and its record beside it as ``PATH.json``; as ``save_onnx``."""
    # The optimizer's state is two more copies of the weights, and no step goes on from it; the loss is a
    # function of ours, which whoever opens the file need not have.
    optimizer, model.optimizer = model.optimizer, None
    compiled, model._is_compiled = model._is_compiled, False  # noqa: SLF001  # nothing public does it
    try:
        replace_file(path, model.save)
    finally:
        model.optimizer, model._is_compiled = optimizer, compiled  # noqa: SLF001  # likewise
    return _save_record("keras", path, about, seed, _keras_layer_facts(model, notes))


def preprocess_of(path: Path) -> Preprocess:
    """Return the preprocessing that a model file was made for.

    An ONNX or ``.tflite`` model of ours says it itself, a Keras model of ours in the record beside it.

    Raises:
        UserError: if nothing says it, or the file or its record cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a model")
    if path.suffix in {".onnx", ".tflite"}:
        about = open_model(path).metadata
        if about.versions:
            return about.preprocess
    elif record_path(path).exists():
        return read_record(path).preprocess
    raise UserError(
        f"{path}: nothing says how its samples were preprocessed; a model of lightship's says so, "
        f"with {record_path(path).name} beside it; of another, give --preprocess default, none or a "
        f"JSON list"
    )


def goal_of(path: Path) -> Goal | None:
    """Return the task that a model file was made for, or None where nothing says it.

    Raises:
        UserError: if the file or its record cannot be read.
    """
    if path.suffix == ".onnx" and path.is_file():
        about = open_model(path).metadata
        return about.goal if about.versions else None
    return read_record(path).goal if record_path(path).exists() else None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a file beside ``path`` and give it its name only once it is whole.

    Raises:
        UserError: if the folder cannot be written or the disk is full.
    """
    # The suffix stays at the end, because Keras chooses its format by it.
    aside = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # what stopped the writing was said already
            aside.unlink(missing_ok=True)


def _save_record(
    kind: Any,
    path: Path,
    about: ModelMetadata,
    seed: int,
    layers: tuple[LayerFacts, ...],
    *,
    keras_agreement: float | None = None,
) -> Artifact:
    artifact = Artifact(
        format=kind,
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        gzip_bytes=gzip_bytes_of(path),
        seed=seed,
        parameters=sum(layer.parameters for layer in layers),
        nonzero_parameters=sum(layer.parameters - layer.zeros for layer in layers),
        layers=layers,
        keras_agreement=keras_agreement,
        **msgspec.structs.asdict(about),
    )
    text = msgspec.json.format(msgspec.json.encode(artifact))
    replace_file(record_path(path), lambda aside: aside.write_bytes(text))
    return artifact


def _keras_layer_facts(model: Any, notes: Mapping[str, str]) -> tuple[LayerFacts, ...]:
    """Describe every layer of a tf-keras model that has a kernel, also in models inside it."""
    facts: list[LayerFacts] = []
    for name, layer in named_layers(model):
        kernels = [w.numpy() for w in layer.trainable_weights if len(w.shape) > 1]
        if kernels:
            facts.append(
                LayerFacts(
                    name=name,
                    kind=type(layer).__name__,
                    parameters=sum(kernel.size for kernel in kernels),
                    zeros=sum(int(np.count_nonzero(kernel == 0)) for kernel in kernels),
                    bits=8 * kernels[0].itemsize,
                    note=notes.get(name),
                    distinct=max(len(np.unique(kernel)) for kernel in kernels),
                )
            )
    return tuple(facts)
