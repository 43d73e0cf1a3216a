"""A bundle as clients of the protocol see it: its tensors, its metadata, its answers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.bundle.manifest import Manifest
from deploy.bundle.runtime import Predictions, Runtime, load
from deploy.errors import UserError
from deploy.serve.refused import RefusedError
from deploy.serve.wire import DATATYPES, Asked, Reader, TensorSpec, answer

Array = npt.NDArray[Any]

LABEL = "label"
PROBABILITIES = "probabilities"
ANOMALY_SCORE = "anomaly_score"
_SCORES = "scores"
_PROVED_WITH = 6
_PLATFORMS = {
    ".onnx": "onnxruntime_onnx",
    ".ort": "onnxruntime_ort",
    ".tflite": "litert_tflite",
}


class Served:
    """One bundle of a server.

    Attributes:
        name, version: of the bundle.
        runtime: the open bundle.
        input: one raw sample, under the name of the graph's input.
        outputs: of a classifier the label of the best class, the probabilities, and what the graph
            itself says; of another task its scores alone.
        reader: reads requests.
        max_batch: samples of one run that may come from several requests; 1 where answers would
            change by that.
        why_not_merged: why they would, or None.
    """

    def __init__(self, runtime: Runtime, *, max_batch: int) -> None:
        said = runtime.metadata
        self.runtime = runtime
        self.name, self.version = said.name, said.version
        self.input = TensorSpec(said.input.name, DATATYPES[said.raw.dtype], said.raw.shape)
        self.outputs = _outputs(said)
        self._specs = {spec.name: spec for spec in self.outputs}
        self.reader = Reader(self.input, np.dtype(said.raw.dtype), tuple(self._specs))
        self._head = {"model_name": self.name, "model_version": self.version}
        self.why_not_merged = why_not_merged(runtime, max_batch=max_batch)
        self.max_batch = max_batch if self.why_not_merged is None else 1

    def metadata(self, versions: Iterable[str]) -> dict[str, Any]:
        """Return what the protocol calls the model's metadata."""
        said = self.runtime.metadata
        return {
            "name": self.name,
            "versions": list(versions),
            "platform": _PLATFORMS[Path(self.runtime.bundle.model_name).suffix],
            "inputs": [self.input.stated()],
            "outputs": [spec.stated() for spec in self.outputs],
            "parameters": {
                "version": self.version,
                "task": said.goal.task,
                "unit": said.goal.unit,
                "labels": list(self.runtime.labels),
                "scores": said.scores,
                "digest": self.runtime.bundle.digest,
            },
        }

    def answer(self, asked: Asked, found: Predictions) -> tuple[bytes, int | None]:
        """Return the body of the answer, and where its JSON ends if binary tensors follow.

        Raises:
            RefusedError: 400, if a score is NaN or infinite: `lightship predict` refuses it too.
        """
        if not np.isfinite(found.scores).all():
            raise RefusedError(
                400, "the model answered NaN or infinity; look for such numbers in the samples"
            )
        tensors: list[tuple[TensorSpec, Array | list[str]]] = []
        for wanted in asked.outputs:
            spec = self._specs[wanted.name]
            if wanted.name == LABEL:
                tensors.append((spec, found.labels))
            elif wanted.name == PROBABILITIES:
                tensors.append((spec, found.probabilities))
            else:
                tensors.append((spec, found.scores))
        return answer(self._head, asked, tensors)


def _outputs(said: Manifest) -> tuple[TensorSpec, ...]:
    """Return what a bundle answers with, for one sample."""
    own = said.output.name
    name = own if own not in {LABEL, PROBABILITIES} else _SCORES
    if said.goal.task == "reconstruction":
        return (TensorSpec(ANOMALY_SCORE, "FP64", (1,)),)
    scores = TensorSpec(name, DATATYPES[said.output.dtype], said.output.shape)
    if said.goal.task != "classification":
        return (scores,)
    return (
        TensorSpec(LABEL, "BYTES", ()),
        TensorSpec(PROBABILITIES, "FP64", said.output.shape),
        scores,
    )


class Models:
    """All bundles of a server, by name and version."""

    def __init__(self, served: Iterable[Served]) -> None:
        self._by_name: dict[str, dict[str, Served]] = {}
        for model in served:
            versions = self._by_name.setdefault(model.name, {})
            if model.version in versions:
                raise UserError(
                    f"{model.runtime.bundle.where}: {model.name} {model.version} is served "
                    "already; give one of them another --name or --model-version when bundling"
                )
            versions[model.version] = model

    def __iter__(self) -> Any:
        return (model for versions in self._by_name.values() for model in versions.values())

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a model, the one that answers where none is named first."""
        return tuple(self._by_name[name])

    def find(self, name: str, version: str | None) -> Served:
        """Return a model; without a version, the one that was given first.

        Raises:
            RefusedError: 404, if there is none.
        """
        versions = self._by_name.get(name)
        if versions is None:
            raise RefusedError(404, f"unknown model {name[:100]!r}")
        if version is None:
            return next(iter(versions.values()))
        if version not in versions:
            raise RefusedError(404, f"{name} has no version {version[:100]!r}")
        return versions[version]


def open_models(
    paths: Iterable[Path], *, threads: int | None, max_batch: int, public_key: Path | None = None
) -> Models:
    """Open bundles to serve.

    Raises:
        UserError: if one is missing, damaged or not signed as asked, or two have the same name and
            version.
    """
    return Models(
        Served(load(path, threads=threads, public_key=public_key), max_batch=max_batch)
        for path in paths
    )


def why_not_merged(runtime: Runtime, *, max_batch: int) -> str | None:
    """Say why samples of several requests do not share a run, or None if they may.

    They may if no golden sample's scores change by a single bit with the number of samples beside
    it or their order: then a client is answered exactly as if it were alone. Dynamic quantization,
    whose scale is that of the whole batch, fails here.
    """
    if max_batch == 1:
        return "it was asked not to"
    if runtime.metadata.input.batch == 1:
        return "the model takes one sample at a time"
    x = runtime.bundle.golden.x[:_PROVED_WITH]
    alone = np.concatenate([runtime.predict(sample).scores for sample in x])
    worst = 0.0
    for size in sorted({2, 3, len(x), max_batch}):
        order = np.resize(np.arange(len(x))[::-1], max(size, len(x)))
        beside = np.concatenate(
            [
                runtime.predict(x[order[start : start + size]]).scores
                for start in range(0, len(order), size)
            ]
        )
        if not np.array_equal(beside, alone[order], equal_nan=True):
            worst = max(worst, float(np.abs(beside - alone[order]).max()))
    if worst:
        return f"scores change by up to {worst:.2g} with the samples beside them"
    return None
