"""What a program on a device uses: raw samples in, labels with probabilities out."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.bundle.manifest import Manifest
from deploy.bundle.opened import Bundle, open_bundle
from deploy.errors import UserError
from deploy.preprocess import prepared
from deploy.record import TaskKind
from deploy.session import reconstruction_errors

Array = npt.NDArray[Any]
Row = Mapping[str, object]

_NAN = "the model answered NaN; look for NaN or huge numbers in the samples"


class Predictions:
    """The answers to one sample or more, each worked out when it is asked for.

    A classifier has ``classes``, ``labels`` and ``probabilities``, a multi-label classifier
    ``label_sets`` and ``probabilities``; of a regression ``scores`` are the values of the targets
    in their unit, of a detector of anomalies the anomaly score alone.

    Attributes:
        scores: what the model said, ``(n, outputs)``.
    """

    __slots__ = ("_logits", "_names", "_task", "scores")

    def __init__(
        self,
        scores: Array,
        names: tuple[str, ...],
        *,
        logits: bool,
        task: TaskKind = "classification",
    ) -> None:
        self.scores = scores
        self._names = names
        self._logits = logits
        self._task = task

    def __len__(self) -> int:
        return len(self.scores)

    def part(self, start: int, stop: int) -> Predictions:
        """Return the answers to the samples from ``start`` to before ``stop``."""
        scores = self.scores[start:stop]
        return Predictions(scores, self._names, logits=self._logits, task=self._task)

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """The class of the highest score of each sample, ``(n,)``; ties go to the lowest.

        Raises:
            UserError: if a score is NaN: such a sample has no class; or the model is no
                classifier.
        """
        self._require("classification")
        best: npt.NDArray[np.int64] = self.scores.argmax(axis=1)
        # argmax stops at the first NaN, so a NaN anywhere in a row is the score it points at.
        if np.isnan(self.scores[np.arange(len(best)), best]).any():
            raise UserError(_NAN)
        return best

    @property
    def labels(self) -> list[str]:
        """The name of the class of each sample."""
        return [self._names[index] for index in self.classes.tolist()]

    @property
    def label_sets(self) -> list[tuple[str, ...]]:
        """The names of the labels of each sample whose probability is one half or more.

        Raises:
            UserError: if a score is NaN, or the model is no multi-label classifier.
        """
        self._require("multi_label")
        if np.isnan(self.scores).any():
            raise UserError(_NAN)
        return [
            tuple(name for name, share in zip(self._names, row, strict=True) if share >= 0.5)
            for row in self.scores
        ]

    @property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Probabilities ``(n, classes)``: the scores, or their softmax where they are logits."""
        if not self._logits:
            return self.scores.astype(np.float64)
        raised = np.exp(self.scores.astype(np.float64) - self.scores.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
        return shares

    @property
    def label(self) -> str:
        """The name of the class of the only sample.

        Raises:
            ValueError: if there are more samples than one.
            UserError: if a score is NaN.
        """
        return self._names[self._only()]

    @property
    def probability(self) -> float:
        """The probability of ``label``.

        Raises:
            ValueError: if there are more samples than one.
            UserError: if a score is NaN.
        """
        best = self._only()
        if self._logits:
            return float(self.probabilities[0, best])
        return float(self.scores[0, best])

    def _require(self, task: TaskKind) -> None:
        if self._task != task:
            kind, other = (name.replace("_", "-") for name in (self._task, task))
            raise UserError(f"the model does {kind}, not {other}; its answers are in scores")

    def _only(self) -> int:
        """Return the class of the only sample, at a third of what ``classes`` takes."""
        self._require("classification")
        if len(self.scores) != 1:
            raise ValueError(f"needs the answer to one sample, got {len(self.scores)}: see labels")
        best = int(self.scores.argmax())
        if math.isnan(self.scores[0, best]):
            raise UserError(_NAN)
        return best


class Runtime:
    """An open bundle. It may be used by several threads at once: it never changes.

    Attributes:
        labels: one name a class, in the order of the scores.
        metadata: the manifest: everything that the bundle says of itself.
        bundle: the files it came from.
    """

    def __init__(self, bundle: Bundle, *, threads: int | None = None, warm_up: bool = True) -> None:
        self.bundle = bundle
        self.metadata: Manifest = bundle.manifest
        self.labels: tuple[str, ...] = bundle.manifest.labels
        self._model = bundle.session(threads)
        self._run = self._model.asked
        self._logits = bundle.manifest.scores == "logits"
        self._task = bundle.manifest.goal.task
        raw = bundle.manifest.raw
        self._raw_shape, self._raw_dtype = raw.shape, np.dtype(raw.dtype)
        self._prepare = prepared(bundle.manifest.preprocess, raw.shape, raw.dtype)
        self._is_direct = self._task != "reconstruction" and self._fits(bundle.golden.x[:1])
        if warm_up:
            self._model.scores(bundle.golden.x[:1])

    def predict(
        self,
        samples: npt.ArrayLike | str | os.PathLike[str] | Row | Sequence[Row],
    ) -> Predictions:
        """Answer for raw samples, as a camera or the data set gives them.

        Args:
            samples: one sample of shape ``metadata.raw.shape``, or several with one axis more in
                front; or the path of an image, a folder of images, a ``.csv`` table or an ``.npy``
                array; or, where samples are rows of a table, a row or a list of rows that name
                each value by its column.

        Raises:
            UserError: if the samples are not of that shape and type, or a file is not readable.
            MissingExtraError: if an image is given and Pillow is not installed.
        """
        if isinstance(samples, np.ndarray):  # at once: the other questions take a microsecond
            pass
        elif isinstance(samples, str | os.PathLike):
            from deploy.bundle.samples import read_samples

            samples = read_samples(Path(samples), self.metadata.raw, self.metadata.preprocess).x
        elif isinstance(samples, Mapping) or _are_rows(samples):
            samples = self._from_rows([samples] if isinstance(samples, Mapping) else samples)
        raw = np.asarray(samples)
        if raw.shape == self._raw_shape:
            raw = raw[None]
        if raw.dtype != self._raw_dtype or raw.shape[1:] != self._raw_shape:
            raw = self._as_raw(raw)
        if self._is_direct and len(raw) == 1:
            return self._predictions(self._run(self._prepare(raw)))
        if self._task == "reconstruction":
            return self._predictions(self._model.errors(raw)[:, None])
        return self._predictions(self._model.scores(raw))

    def predict_prepared(self, inputs: Array) -> Predictions:
        """Answer for inputs ``(n, ...)`` that are preprocessed already; nothing is checked.

        What comes in must be of ``metadata.input``'s shape and type. This is the road with the
        least between a program and the session.
        """
        outputs = self._run(inputs)
        if self._task == "reconstruction":
            outputs = reconstruction_errors(inputs, outputs)[:, None]
        return self._predictions(outputs)

    def _fits(self, sample: Array) -> bool:
        """Say whether a raw sample is what the graph takes as soon as it is prepared."""
        try:
            inputs = self._prepare(sample)
        except UserError:  # said when it is asked for
            return False
        model = self._model
        return inputs.shape[1:] == model.input_shape and inputs.dtype == model.input_dtype

    def _predictions(self, scores: Array) -> Predictions:
        return Predictions(scores, self.labels, logits=self._logits, task=self._task)

    def _from_rows(self, rows: Any) -> Array:
        """Return the samples that rows with a value a column stand for."""
        from deploy.tables import samples_of, table_of

        table = table_of(self.metadata.preprocess)
        if table is None:
            raise UserError(f"{self._model.where}: its samples are no rows of a table; give arrays")
        return samples_of(rows, table, where=self._model.where)

    def _as_raw(self, raw: Array) -> Array:
        """Return samples in the type that the preprocessing was made for, unless values would change."""
        where, wanted = self._model.where, self._raw_dtype
        if raw.ndim != 1 + len(self._raw_shape) or raw.shape[1:] != self._raw_shape:
            raise UserError(
                f"{where}: takes one sample of shape {self._raw_shape} or several with one axis "
                f"more in front, got {raw.shape}"
            )
        if wanted.kind == "f" and raw.dtype.kind in "biuf":
            return raw.astype(wanted)
        if raw.dtype.kind not in "biu" or wanted.kind not in "iu":
            raise UserError(
                f"{where}: takes {wanted} samples as they are read, got {raw.dtype}; "
                "give them before any scaling, or use predict_prepared"
            )
        limits = np.iinfo(wanted)
        if raw.size and not (limits.min <= raw.min() and raw.max() <= limits.max):
            raise UserError(
                f"{where}: takes {wanted} samples, got values from {raw.min()} to {raw.max()}"
            )
        return raw.astype(wanted)


def _are_rows(samples: object) -> bool:
    return isinstance(samples, list | tuple) and bool(samples) and isinstance(samples[0], Mapping)


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    warm_up: bool = True,
    public_key: str | os.PathLike[str] | None = None,
) -> Runtime:
    """Open a bundle; what it does and raises is told in ``deploy.load``."""
    key = Path(public_key) if public_key is not None else None
    return Runtime(open_bundle(Path(path), public_key=key), threads=threads, warm_up=warm_up)
