"""Samples that may be too many for memory: what reads them from disk when asked."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import tempfile
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from deploy.errors import UserError

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]

Samples: TypeAlias = Any
"""An array ``(n, ...)`` or a ``Stream`` of that shape: both know ``len``, ``shape``, ``ndim`` and
``dtype``, and give an array for a slice, a list of numbers or a mask. ``Any``, because functions
that were written for arrays take both."""

MEMORY_BYTES = 1 << 30
"""Samples that need more than this are left on disk, unless their reader is told otherwise."""

_BLOCK_BYTES = 1 << 22
_MOST_BLOCK_SAMPLES = 1024


class Stream(ABC):
    """Samples ``(n, ...)`` that are made when they are asked for.

    ``stream[index]`` gives an array as indexing an array by rows does; a stream is never indexed
    beyond its first axis. ``numpy.asarray(stream)`` brings all of it into memory.

    Attributes:
        shape: ``(n, ...)``.
        dtype: element type.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape = shape
        self.dtype = dtype

    @abstractmethod
    def rows(self, rows: Rows) -> Array:
        """Return the samples of these numbers, each from 0 to ``len - 1``, in this order."""

    @property
    def ndim(self) -> int:
        """Number of axes, that of the samples included."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        count = len(self)
        if isinstance(index, slice):
            return self.rows(np.arange(*index.indices(count), dtype=np.int64))
        numbers = np.asarray(index)
        if numbers.dtype == np.bool_:
            if numbers.shape != (count,):
                raise IndexError(f"a mask must be ({count},), got {numbers.shape}")
            numbers = np.flatnonzero(numbers)
        rows = numbers.reshape(-1).astype(np.int64)
        if rows.size and not (-count <= rows.min() and rows.max() < count):
            raise IndexError(
                f"samples count from 0 to {count - 1}, got {rows.min()} to {rows.max()}"
            )
        found = self.rows(np.where(rows < 0, rows + count, rows))
        return found if numbers.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a stream has no array to share: its samples are made when asked for")
        return np.asarray(self[:], dtype)


class FileArray(Stream):
    """Samples that lie row after row in an open file, which is closed when nobody uses them any more."""

    def __init__(
        self, file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], *, offset: int = 0
    ) -> None:
        super().__init__(shape, dtype.newbyteorder("="))
        self._file = file
        self._stored = dtype
        self._offset = offset
        self._sample_bytes = dtype.itemsize * math.prod(shape[1:])
        self._lock = threading.Lock()  # one file position for all threads
        self._close = weakref.finalize(self, file.close)
        self._whole: FileArray | None = None  # what else has to stay open

    def rows(self, rows: Rows) -> Array:
        """Return the samples of these numbers; neighbours are read together."""
        found = np.empty((len(rows), *self.shape[1:]), self._stored)
        target = found.reshape(-1).view(np.uint8).data
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        starts = [0, *breaks.tolist(), len(rows)] if len(rows) else [0]
        with self._lock:
            for start, end in itertools.pairwise(starts):
                self._file.seek(self._offset + int(rows[start]) * self._sample_bytes)
                piece = target[start * self._sample_bytes : end * self._sample_bytes]
                if self._file.readinto(piece) != len(piece):  # type: ignore[attr-defined]  # binary files have it
                    raise UserError(
                        "samples: their file became shorter while it was read; start again"
                    )
        return found.astype(self.dtype, copy=False)

    def read_as(self, shape: tuple[int, ...], dtype: np.dtype[Any], *, offset: int) -> FileArray:
        """Return the same file, ``offset`` bytes further on, as samples of another shape and type."""
        view = FileArray(self._file, shape, dtype, offset=self._offset + offset)
        view._close.detach()
        view._lock, view._whole = self._lock, self
        return view


class Chosen(Stream):
    """Some samples of a stream, by number."""

    def __init__(self, source: Stream, numbers: Rows) -> None:
        super().__init__((len(numbers), *source.shape[1:]), source.dtype)
        self._source = source
        self._numbers = np.asarray(numbers, np.int64)

    def rows(self, rows: Rows) -> Array:
        """Return the samples of these numbers."""
        return np.asarray(self._source[self._numbers[rows]])


class Mapped(Stream):
    """What a function makes of samples, batch by batch.

    Args:
        source: the samples.
        function: turns ``(n, ...)`` into ``(n, ...)``, each sample for itself.
    """

    def __init__(self, source: Samples, function: Callable[[Array], Array]) -> None:
        first = function(source[:1])
        super().__init__((len(source), *first.shape[1:]), first.dtype)
        self._source = source
        self._function = function

    def rows(self, rows: Rows) -> Array:
        """Return what the function makes of the samples of these numbers."""
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        return self._function(self._source[rows])


class Spool:
    """Takes samples block by block and keeps them: in memory while they are few, else on disk.

    Args:
        memory_bytes: what may be kept in memory.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self._blocks: list[Array] = []
        self._bytes = 0
        self._count = 0
        self._file: IO[bytes] | None = None

    def add(self, block: Array) -> None:
        """Keep some more samples ``(n, ...)``, all of one shape and type.

        Raises:
            UserError: if the disk is full.
        """
        self._count += len(block)
        self._bytes += block.nbytes
        self._blocks.append(block)
        if self._bytes > self._memory_bytes:
            if self._file is None:
                self._file = scratch_file()
                self._close = weakref.finalize(self, self._file.close)
            for kept in self._blocks:
                write_samples(self._file, kept)
            self._blocks = [self._blocks[-1][:0]]

    def finish(self) -> Samples:
        """Return all samples that were added, at least one block."""
        last = self._blocks[-1]
        if self._file is None:
            return np.concatenate(self._blocks)
        for kept in self._blocks:
            write_samples(self._file, kept)
        self._file.flush()
        self._close.detach()
        return FileArray(self._file, (self._count, *last.shape[1:]), last.dtype)


def scratch_file() -> IO[bytes]:
    """Return an empty file without a name, which is gone when nobody uses it any more.

    It lies where ``TMPDIR`` says, or else in ``/var/tmp``: ``/tmp`` is memory on many machines.

    Raises:
        UserError: if no file can be made there.
    """
    folder = os.environ.get("TMPDIR")
    if not folder and Path("/var/tmp").is_dir():  # noqa: S108 - the file gets a name nobody can guess
        folder = "/var/tmp"  # noqa: S108
    try:
        return tempfile.TemporaryFile(dir=folder, prefix="lightship-")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot hold the samples that do not fit into memory ({error.strerror}); "
            f"set TMPDIR to a folder with room"
        ) from error


def write_samples(file: IO[bytes], block: Array) -> None:
    """Append samples to a file of ``scratch_file``.

    Raises:
        UserError: if the disk is full.
    """
    try:
        file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise UserError(
            f"samples: no room on disk for what does not fit into memory ({error.strerror}); "
            f"set TMPDIR to a folder with room"
        ) from error


def choose(samples: Samples, numbers: Rows) -> Samples:
    """Return some samples by number: a copy of an array, a view of a stream."""
    return Chosen(samples, numbers) if isinstance(samples, Stream) else samples[numbers]


def blocks(samples: Samples) -> Iterator[Array]:
    """Yield samples in order, a few megabytes at a time; equal for an array and its stream."""
    sample_bytes = max(1, samples.dtype.itemsize * math.prod(samples.shape[1:]))
    step = max(1, min(_MOST_BLOCK_SAMPLES, _BLOCK_BYTES // sample_bytes))
    for start in range(0, len(samples), step):
        yield samples[start : start + step]


def open_npy(path: Path) -> FileArray:
    """Open an ``.npy`` file without reading its samples.

    Raises:
        ValueError: if it is no such file, holds Python objects, is cut off or stored by columns.
        OSError: if it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        shape, dtype = read_npy_header(file)
        offset = file.tell()
        missing = offset + dtype.itemsize * math.prod(shape) - path.stat().st_size
        if missing > 0:
            raise ValueError(f"it is cut off, {missing} bytes are missing")
        stack.pop_all()
    return FileArray(file, shape, dtype, offset=offset)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read the front of an ``.npy`` file up to its samples; return their shape and type.

    Raises:
        ValueError: if it is no such file, holds Python objects or is stored by columns.
    """
    version = np.lib.format.read_magic(file)
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"its format version {version} is unknown")
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Python objects are refused, reading them would need pickle")
    if by_columns and len(shape) > 1:
        raise ValueError("it is stored by columns; save numpy.ascontiguousarray of it")
    return shape, dtype
