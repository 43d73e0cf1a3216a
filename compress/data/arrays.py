"""Labelled samples that lie in files as arrays: ``.npz``, ``.npy``, and MNIST's idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled, numbered_labels, numbered_outputs
from deploy.errors import UserError
from deploy.evalset import EvalSet, pair, read_arrays
from deploy.record import TaskKind
from deploy.streams import MEMORY_BYTES, FileArray, Samples, Spool, open_npy

Array = npt.NDArray[Any]

_PIECE_BYTES = 1 << 22
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_npz(
    path: Path, task: TaskKind = "classification", *, memory_bytes: int = MEMORY_BYTES
) -> Labelled:
    """Read ``x_train, y_train`` (with ``x_test, y_test`` if there), or ``x, y``.

    Args:
        path: the file.
        task: what ``y`` holds, as ``evalset.pair`` takes it.
        memory_bytes: a larger array is unpacked to disk, and read from there when asked for.

    Raises:
        UserError: if the file is missing or damaged, lacks the arrays, holds Python objects, or its
            samples and classes do not pair.
    """
    arrays = read_arrays(
        path,
        ("x_train", "y_train", "x_test", "y_test"),
        ("x_train", "y_train"),
        ("x", "y"),
        memory_bytes=memory_bytes,
    )
    train = pair(arrays[0], arrays[1], where=f"{path}: training part", task=task)
    test = None
    if len(arrays) == 4:
        test = pair(arrays[2], arrays[3], where=f"{path}: test part", task=task)
    return _labelled(train, test, task, where=str(path))


def read_npy(
    folder: Path, task: TaskKind = "classification", *, memory_bytes: int = MEMORY_BYTES
) -> Labelled:
    """Read ``x_train.npy, y_train.npy`` (with ``x_test.npy, y_test.npy`` if there), or ``x``, ``y``.

    Args:
        folder: where the files lie.
        task: what ``y`` holds, as ``evalset.pair`` takes it.
        memory_bytes: files of samples larger than this are read where they lie, when asked for.

    Raises:
        UserError: if a file is missing or damaged, holds Python objects, or samples and classes do
            not pair.
    """
    parts = ("train", "test") if (folder / "x_train.npy").exists() else ("",)
    read = []
    for part in parts:
        x, y = (folder / f"{name}_{part}.npy" if part else folder / f"{name}.npy" for name in "xy")
        if part == "test" and not x.exists() and not y.exists():
            continue
        arrays = _read_npy_file(x, memory_bytes), np.asarray(_read_npy_file(y, memory_bytes))
        read.append(pair(*arrays, where=f"{folder}: {part or 'training'} part", task=task))
    train, *test = read
    return _labelled(train, test[0] if test else None, task, where=str(folder))


def _labelled(train: EvalSet, test: EvalSet | None, task: TaskKind, *, where: str) -> Labelled:
    """Name what was read without names, by numbers."""
    if task == "classification":
        labels = numbered_labels(train, where=where)
    else:
        labels = numbered_outputs(train, task)
    return Labelled(train=train, test=test, labels=labels)


def _read_npy_file(path: Path, memory_bytes: int) -> Samples:
    try:
        samples = open_npy(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder with x.npy and y.npy") from None
    except (OSError, ValueError, SyntaxError, TokenError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from error
    if samples.dtype.kind not in "biuf":
        raise UserError(f"{path}: must hold real numbers, got {samples.dtype}")
    small = samples.dtype.itemsize * math.prod(samples.shape) <= memory_bytes
    return samples[:] if small else samples


def read_idx(folder: Path, *, memory_bytes: int = MEMORY_BYTES) -> Labelled:
    """Read the four files of MNIST, plain or ``.gz``; the two of the test part may be absent.

    Their names are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
    ``t10k`` in place of ``train``. Format: http://yann.lecun.com/exdb/mnist/.

    Raises:
        UserError: if a file is missing or damaged, or samples and classes do not pair.
    """
    train = _read_idx_part(folder, "train", memory_bytes)
    test = _read_idx_part(folder, "t10k", memory_bytes) if any(folder.glob("t10k-*")) else None
    return Labelled(train=train, test=test, labels=numbered_labels(train, where=str(folder)))


def _read_idx_part(folder: Path, part: str, memory_bytes: int) -> EvalSet:
    images = _read_idx_file(folder / f"{part}-images-idx3-ubyte", memory_bytes)
    labels = np.asarray(_read_idx_file(folder / f"{part}-labels-idx1-ubyte", memory_bytes))
    return pair(images, labels, where=f"{folder}: {part} part")


def _read_idx_file(plain: Path, memory_bytes: int) -> Samples:
    path = next((p for p in (plain, plain.with_name(f"{plain.name}.gz")) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"{plain}: no such file, plain or .gz; give a folder with MNIST's file names"
        )
    try:
        content = _bytes_of(path, memory_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable file ({error})") from error
    front = content[:4].tobytes()
    if len(front) < 4 or front[:2] != b"\0\0" or front[2] not in _IDX_TYPES:
        raise UserError(f"{path}: not an idx file, it begins with 0x{front.hex()}")
    start = 4 + 4 * front[3]
    dtype = np.dtype(_IDX_TYPES[front[2]])
    sizes = content[4:start].tobytes().ljust(start - 4, b"\0")
    shape = tuple(np.frombuffer(sizes, ">u4").tolist())
    wanted = start + dtype.itemsize * math.prod(shape)
    if len(content) != wanted:
        raise UserError(
            f"{path}: damaged, its header promises {wanted} bytes and it has {len(content)}"
        )
    if isinstance(content, FileArray):
        return content.read_as(shape, dtype, offset=start)
    array: Array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def _bytes_of(path: Path, memory_bytes: int) -> Samples:
    """Return the bytes of a file, unpacked if it is ``.gz``: uint8 ``(n,)``."""
    size = path.stat().st_size
    if path.suffix != ".gz" and size > memory_bytes:
        return FileArray(path.open("rb"), (size,), np.dtype(np.uint8))
    spool = Spool(memory_bytes)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        spool.add(np.empty(0, np.uint8))  # an empty file is a block too
        while piece := file.read(_PIECE_BYTES):
            spool.add(np.frombuffer(piece, np.uint8))
    return spool.finish()
