"""A set of labelled raw samples, as it lies beside a run or on a device."""

from __future__ import annotations

import math
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.record import TaskKind
from deploy.streams import (
    MEMORY_BYTES,
    Samples,
    Spool,
    Stream,
    blocks,
    read_npy_header,
    write_samples,
)

Array = npt.NDArray[Any]

_LARGEST_BYTES = 1 << 34


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSet:
    """Raw samples ``x`` of shape ``(n, ...)`` and the truth ``y`` about them, as ``pair`` has it.

    Where they are too many for memory, ``x`` reads them from disk when they are asked for.
    """

    x: Samples
    y: Array

    @staticmethod
    def load(path: Path, task: TaskKind = "classification") -> EvalSet:
        """Read ``x`` and ``y`` (or ``x_test`` and ``y_test``) from an ``.npz`` file.

        Raises:
            UserError: if the file is missing, is no ``.npz``, lacks the arrays, holds Python
                objects, or has samples and labels that do not pair.
        """
        x, y = read_arrays(path, ("x", "y"), ("x_test", "y_test"))
        return pair(x, y, where=str(path), task=task)

    def save(self, path: Path) -> None:
        """Write the set as a compressed ``.npz`` that ``load`` reads back unchanged."""
        if isinstance(self.x, Stream):
            _save_blocks(path, x=self.x, y=self.y)
            return
        with path.open("wb") as file:  # given a path, numpy would append .npz to its name
            np.savez_compressed(file, x=self.x, y=self.y)


def _save_blocks(path: Path, **arrays: Samples) -> None:
    """Write what ``np.savez_compressed`` writes, a few megabytes at a time."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, samples in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                about = {
                    "descr": np.lib.format.dtype_to_descr(samples.dtype),
                    "fortran_order": False,
                    "shape": samples.shape,
                }
                np.lib.format.write_array_header_1_0(file, about)
                for block in blocks(samples):
                    write_samples(file, block)


def read_arrays(
    path: Path, *choices: tuple[str, ...], memory_bytes: int = MEMORY_BYTES
) -> tuple[Samples, ...]:
    """Read from an ``.npz`` file the first of several groups of arrays that it holds whole.

    Args:
        path: the file.
        choices: groups of array names, the best first.
        memory_bytes: a larger array is unpacked to disk, and read from there when asked for.

    Raises:
        UserError: if the file is missing, is no ``.npz``, holds none of the groups, or holds
            Python objects in place of numbers.
    """
    try:
        return _read(path, choices, memory_bytes)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give an .npz file") from None
    # numpy, zipfile and the unpackers raise whatever the first odd byte leads to, for a header up
    # to the tokenizer's own exception.
    except Exception as error:
        if "pickle" in str(error):
            raise UserError(
                f"{path}: Python objects are refused, because reading them can run code; "
                "save arrays of numbers"
            ) from error
        raise UserError(f"{path}: not a readable .npz file ({_one_line(error)})") from error


def _read(
    path: Path, choices: tuple[tuple[str, ...], ...], memory_bytes: int
) -> tuple[Samples, ...]:
    with path.open("rb") as file, warnings.catch_warnings():
        # numpy advises whoever reads a file of Python 2 to write it anew.
        warnings.simplefilter("ignore")
        if not zipfile.is_zipfile(file):
            raise UserError(f"{path}: not an .npz file; save named arrays with numpy.savez")
        with zipfile.ZipFile(file) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > _LARGEST_BYTES:
            raise UserError(
                f"{path}: unpacks to {claimed:,} bytes, {_LARGEST_BYTES:,} are allowed; split it"
            )
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            for names in choices:
                if set(names) <= set(arrays):
                    return tuple(
                        _numbers(_unpacked(arrays, name, memory_bytes), f"{path}: {name}")
                        for name in names
                    )
            raise UserError(
                f"{path}: needs arrays named "
                f"{' or '.join(', '.join(names) for names in choices)}; "
                f"got {', '.join(sorted(arrays)) or 'none'}"
            )


def _unpacked(arrays: Any, name: str, memory_bytes: int) -> Samples:
    """Return one array of an ``.npz``: from a file on disk if it would not fit into memory."""
    member = f"{name}.npy"
    archive: zipfile.ZipFile = arrays.zip
    if member not in archive.namelist() or archive.getinfo(member).file_size <= memory_bytes:
        return arrays[name]
    with archive.open(member) as packed:
        shape, dtype = read_npy_header(packed)
        spool = Spool(0)
        while piece := packed.read(1 << 22):  # the end checks the checksum of what was read
            spool.add(np.frombuffer(piece, np.uint8))
    content = spool.finish()
    if len(content) != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{name} promises {shape} {dtype} and holds {len(content)} bytes")
    return content.read_as(shape, dtype, offset=0)


def pair(x: Samples, y: Array, *, where: str, task: TaskKind = "classification") -> EvalSet:
    """Return samples and the truth about them as a set, once they are known to pair.

    Args:
        x: raw samples, ``(n, ...)``.
        y: integer classes counted from 0, ``(n,)`` or ``(n, 1)``; of a multi-label task 0 or 1,
            ``(n, labels)``; of a regression values, ``(n,)`` or ``(n, targets)``; of a
            reconstruction 1 for an anomaly, else 0, ``(n,)``.
        where: the file or part that an error names.
        task: what kind of truth it is.

    Returns:
        ``y`` as int64 ``(n,)``; of a multi-label task as int64 ``(n, labels)``, of a regression as
        float32 ``(n, targets)``.

    Raises:
        UserError: if the lengths differ, there are no samples, or the truth is not of the task's
            kind.

    >>> pair(np.zeros((2, 3)), np.array([[1], [0]]), where="here").y.tolist()
    [1, 0]
    >>> pair(np.zeros((2, 3)), np.array([1.5, 2]), where="here", task="regression").y.tolist()
    [[1.5], [2.0]]
    """
    y = np.asarray(y)
    wide = task in {"multi_label", "regression"}
    if not wide and y.ndim == 2 and y.shape[1] == 1:
        y = y.reshape(-1)
    elif wide and y.ndim == 1:
        y = y.reshape(-1, 1)
    if x.ndim < 1 or y.ndim != 1 + wide or len(x) != len(y) or y.size == 0:
        one = _ONE_SAMPLE[task]
        raise UserError(
            f"{where}: x and y must pair, {one} a sample; got x {x.shape} and y {y.shape}"
        )
    if task == "regression":
        return EvalSet(x=x, y=_values(y, where))
    if not np.issubdtype(y.dtype, np.integer):
        what = "integer classes counted from 0" if task == "classification" else "integers, 0 or 1"
        raise UserError(f"{where}: y must be {what}, got {y.dtype}")
    if y.min() < 0:
        index = int(np.argmax(y.reshape(len(y), -1).min(axis=1) < 0))
        raise UserError(f"{where}: classes count from 0, got {y[index]} at index {index} of y")
    if int(y.max()) > np.iinfo(np.int64).max:
        index = int(np.argmax(y))
        raise UserError(
            f"{where}: classes must be below 2**63, got {y.flat[index]} at index {index} of y; "
            f"count them from 0"
        )
    if task != "classification" and y.max() > 1:
        index = int(np.argmax(y.reshape(len(y), -1).max(axis=1) > 1))
        raise UserError(f"{where}: y must be 0 or 1, got {y[index]} at index {index} of y")
    return EvalSet(x=x, y=y.astype(np.int64))


_ONE_SAMPLE: dict[TaskKind, str] = {
    "classification": "one integer class",
    "multi_label": "one row of labels, 0 or 1 each,",
    "regression": "one value or one row of values",
    "reconstruction": "one 0 or 1 (an anomaly)",
}


def _values(y: Array, where: str) -> npt.NDArray[np.float32]:
    """Return the values of a regression's targets as float32."""
    with np.errstate(over="ignore"):
        values = y.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise UserError(
            f"{where}: y must hold numbers that float32 can hold, got {y[bad[0]]} at index {bad[0]}"
        )
    return values


def _numbers(array: Samples, where: str) -> Samples:
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} must hold real numbers, got {array.dtype}")
    return array


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
