"""Which rows of a batch are at hand, where several accelerators share it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """A run of a batch's samples, as one accelerator computes it.

    What is drawn for a sample is drawn for the whole batch and cut, so that it does not depend on how
    many share the batch.

    Attributes:
        begin: the first sample of the run, an int64 tensor.
        end: the sample after it, likewise.
        samples: in the whole batch, likewise.
        gather: turns the values of this run ``(end - begin, ...)`` into those of the whole batch
            ``(samples, ...)``; every accelerator has to call it.
    """

    begin: Any
    end: Any
    samples: Any
    gather: Callable[[Any], Any]

    @property
    def share(self) -> Any:
        """Its part of the batch, a float32 scalar."""
        import tensorflow as tf

        return tf.cast(self.end - self.begin, tf.float32) / tf.cast(self.samples, tf.float32)


def drawn(draw: Callable[[Any], Any], shape: Any, rows: Rows | None) -> Any:
    """Return what ``draw`` gives for the samples at hand; None is the whole batch.

    Args:
        draw: makes a tensor of a shape, the same one at each accelerator.
        shape: int tensor ``(rank,)``. Its first length is that of the samples at hand, or a multiple
            where a layer folds another axis into the batch, or 1 for what all samples share.
        rows: those at hand.
    """
    import tensorflow as tf

    if rows is None:
        return draw(shape)
    shape = tf.cast(shape, tf.int64)
    own = shape[0]
    times = own // (rows.end - rows.begin)
    whole = tf.where(times > 0, times * rows.samples, own)
    values = draw(tf.concat([[whole], shape[1:]], axis=0))
    return values[times * rows.begin : times * rows.begin + own]
