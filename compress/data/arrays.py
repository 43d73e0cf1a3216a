"""Labelled samples that lie in files as arrays: ``.npz``, and MNIST's idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.labelled import Labelled, numbered_labels, numbered_outputs
from deploy.errors import UserError
from deploy.evalset import EvalSet, pair, read_arrays
from deploy.record import TaskKind

Array = npt.NDArray[Any]

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_npz(path: Path, task: TaskKind = "classification") -> Labelled:
    """Read ``x_train, y_train`` (with ``x_test, y_test`` if there), or ``x, y``.

    Args:
        path: the file.
        task: what ``y`` holds, as ``evalset.pair`` takes it.

    Raises:
        UserError: if the file is missing or damaged, lacks the arrays, holds Python objects, or its
            samples and classes do not pair.
    """
    arrays = read_arrays(
        path, ("x_train", "y_train", "x_test", "y_test"), ("x_train", "y_train"), ("x", "y")
    )
    train = pair(arrays[0], arrays[1], where=f"{path}: training part", task=task)
    test = None
    if len(arrays) == 4:
        test = pair(arrays[2], arrays[3], where=f"{path}: test part", task=task)
    if task != "classification":
        return Labelled(train=train, test=test, labels=numbered_outputs(train, task))
    return Labelled(train=train, test=test, labels=numbered_labels(train, where=str(path)))


def read_idx(folder: Path) -> Labelled:
    """Read the four files of MNIST, plain or ``.gz``; the two of the test part may be absent.

    Their names are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
    ``t10k`` in place of ``train``. Format: http://yann.lecun.com/exdb/mnist/.

    Raises:
        UserError: if a file is missing or damaged, or samples and classes do not pair.
    """
    train = _read_idx_part(folder, "train")
    test = _read_idx_part(folder, "t10k") if any(folder.glob("t10k-*")) else None
    return Labelled(train=train, test=test, labels=numbered_labels(train, where=str(folder)))


def _read_idx_part(folder: Path, part: str) -> EvalSet:
    images = _read_idx_file(folder / f"{part}-images-idx3-ubyte")
    labels = _read_idx_file(folder / f"{part}-labels-idx1-ubyte")
    return pair(images, labels, where=f"{folder}: {part} part")


def _read_idx_file(plain: Path) -> Array:
    path = next((p for p in (plain, plain.with_name(f"{plain.name}.gz")) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"{plain}: no such file, plain or .gz; give a folder with MNIST's file names"
        )
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a readable file ({error})") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _IDX_TYPES:
        raise UserError(f"{path}: not an idx file, it begins with 0x{data[:4].hex()}")
    start = 4 + 4 * data[3]
    dtype = np.dtype(_IDX_TYPES[data[2]])
    shape = np.frombuffer(data[4:start].ljust(start - 4, b"\0"), ">u4").tolist()
    wanted = start + dtype.itemsize * math.prod(shape)
    if len(data) != wanted:
        raise UserError(
            f"{path}: damaged, its header promises {wanted} bytes and it has {len(data)}"
        )
    array: Array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))
