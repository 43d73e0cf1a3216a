"""Batches of a split, made ready while the processor computes on the one before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.task import Split, Task
from compress.train.losses import targets

_AHEAD = 3
"""Batches that wait at most: memory does not grow with the data."""

Batch = tuple[Any, Any]
"""Inputs ``(b, ...)`` and targets ``(b, outputs)``, both tensors."""


def read_batch(task: Task, split: Split, indices: npt.NDArray[np.int64]) -> Batch:
    """Return some samples of a split; only these are read, decoded and preprocessed."""
    import tensorflow as tf

    x, y = split.x[indices], targets(task, split.y[indices])
    return tf.convert_to_tensor(x), tf.convert_to_tensor(y)


def ahead(
    read: Callable[[npt.NDArray[np.int64]], Batch], parts: Sequence[npt.NDArray[np.int64]]
) -> Iterator[Batch]:
    """Yield what ``read`` makes of each part, in order, reading the next ones meanwhile.

    What ``read`` raises is raised here. Close the iterator to stop reading.
    """
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as reader:
        try:
            for part in parts:
                waiting.append(reader.submit(read, part))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def cut(indices: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """Return batches of indices; the last one holds what is left.

    >>> [len(part) for part in cut(np.arange(5), 2)]
    [2, 2, 1]
    """
    return [indices[at : at + size] for at in range(0, len(indices), size)]
