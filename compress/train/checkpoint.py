"""Where a training stands, on disk: enough to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.record import Record

_STANDING = "standing"

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFiles:
    """What a training leaves on disk while it runs; each is left out if None.

    Attributes:
        checkpoint: where it stands, so that a killed training goes on: of the same ``key``,
            settings, data and first weights only. Whoever keeps the result removes it.
        key: whatever else decides the result and the loop does not see.
        every_seconds: least time between two checkpoints; more if writing one takes long, so that
            it costs at most 2 %. 0 writes one after each step.
        csv: a table with one line an epoch.
        tensorboard: a folder of logs for TensorBoard.
    """

    checkpoint: Path | None = None
    key: str = ""
    every_seconds: float = 10.0
    csv: Path | None = None
    tensorboard: Path | None = None


class EpochEnd(Record, frozen=True):
    """What is known when an epoch is over."""

    epoch: int
    """Counted from 1."""
    epochs: int
    """How many there will be, unless training stops early."""
    metrics: dict[str, float]
    """``loss``, the task's metric, ``penalty`` where there is one, ``distance`` to a teacher's answers
    where there is one, and with validation samples ``val_loss`` and the metric again as ``val_…``.
    ``loss`` is without the penalty and the teacher."""
    seconds: float
    """How long the epoch took, validation included."""
    learning_rate: float = 0.0
    """Of its last step."""
    last: bool = False
    """Whether training is over with it: it was the last one, or training stops early."""


class Standing(Record, frozen=True):
    """How far a training has come, beside its arrays."""

    fingerprint: str
    """Of everything that decides how it goes on."""
    epochs: tuple[EpochEnd, ...]
    """Those that are over."""
    best_epoch: int | None
    """Counted from 1."""


def fingerprint(parts: Mapping[str, object], arrays: Iterable[npt.NDArray[Any]]) -> str:
    """Return a digest of settings and of the weights that a training begins with."""
    digest = hashlib.sha256(msgspec.json.encode(dict(parts), order="deterministic"))
    for array in arrays:
        digest.update(f"{array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write_checkpoint(path: Path, standing: Standing, arrays: Arrays) -> None:
    """Write beside ``path`` and rename: a kill at any moment leaves this one or the last one.

    Raises:
        UserError: if the disk is full or the place cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    text = np.frombuffer(msgspec.json.encode(standing), dtype=np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, **{_STANDING: text, **arrays})  # type: ignore[arg-type]  # all arrays
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot keep a checkpoint: {error.strerror or error}; make room or give "
            "another place, then run the same command again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def read_checkpoint(
    path: Path, *, fingerprint: str, hear: Callable[[bytes], bytes] = bytes
) -> tuple[Standing, Arrays] | None:
    """Return what was written for this very training; None if there is none or it is damaged.

    Args:
        path: the file.
        fingerprint: of this training.
        hear: turns what this worker has into what the first one has, nothing into nothing.
    """
    data = b""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
    try:
        with np.load(io.BytesIO(hear(data)), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        standing = msgspec.json.decode(arrays.pop(_STANDING).tobytes(), type=Standing)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError):
        return None
    return (standing, arrays) if standing.fingerprint == fingerprint else None
