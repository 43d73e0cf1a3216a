"""How far a training is inside an epoch, told to whoever draws it.

Who draws is found in the context and is no argument, because it changes nothing of what is learned and
each step that trains would only hand it on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

_PAUSE_SECONDS = 0.25
"""Between two tellings at least: what draws shares the processor with what learns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchesDone:
    """Where a training stands inside an epoch.

    Attributes:
        epoch: the one under way, counted from 1.
        epochs: how many there will be.
        batches: computed of this epoch.
        of: so many.
        loss: of a batch not long ago; None before one was looked at.
    """

    epoch: int
    epochs: int
    batches: int
    of: int
    loss: float | None


Hear = Callable[[BatchesDone], None]

_HEARS: ContextVar[Hear | None] = ContextVar("hears", default=None)


@contextlib.contextmanager
def hearing_batches(hear: Hear) -> Iterator[None]:
    """Let ``hear`` be told, a few times a second, how trainings inside the block get on."""
    before = _HEARS.set(hear)
    try:
        yield
    finally:
        _HEARS.reset(before)


class Telling:
    """Tells who hears now, if anybody does; asking costs next to nothing."""

    def __init__(self) -> None:
        self._hear = _HEARS.get()
        self._told_at = time.monotonic()

    def tell_if_due(
        self, *, epoch: int, epochs: int, batches: int, of: int, loss: float | None
    ) -> None:
        """Say where the training stands, unless that was said just now."""
        if self._hear is None or time.monotonic() - self._told_at < _PAUSE_SECONDS:
            return
        self._told_at = time.monotonic()
        self._hear(BatchesDone(epoch=epoch, epochs=epochs, batches=batches, of=of, loss=loss))
