"""What is drawn at random while training: a function of the seed and the step alone.

Keras' own generators keep a state that no checkpoint holds, so a training that is killed and goes on
would draw other numbers than one that is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from compress.data.rows import Rows, drawn

_GENERATOR = "philox"
"""Left to itself, TensorFlow takes another one on some accelerators. XLA seeds it in its own way."""


def order(samples: int, *, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Return the order in which an epoch, counted from 0, goes through the samples.

    >>> order(4, seed=0, epoch=0).tolist() == order(4, seed=0, epoch=0).tolist()
    True
    """
    return np.random.default_rng([seed, epoch]).permutation(samples)


class Draws:
    """A source of random tensors for the graph of one training step.

    Attributes:
        seed: int64 tensor ``(2,)`` of the step that is being traced; set by the step itself.
        rows: of its batch, that are computed here; None is all of it.
    """

    def __init__(self) -> None:
        self.seed: Any = None
        self.rows: Rows | None = None
        self._drawn = 0

    def begin(self, seed: Any, rows: Rows | None = None) -> None:
        """Start the draws of one step."""
        self.seed, self.rows, self._drawn = seed, rows, 0

    def next_seed(self) -> Any:
        """Return the seed of the next tensor, another one at each call of a step."""
        import tensorflow as tf

        self._drawn += 1
        return tf.random.fold_in(self.seed, self._drawn, alg=_GENERATOR)

    def dropout(self, inputs: Any, rate: float, noise_shape: Any = None) -> Any:
        """As ``tf.nn.dropout``."""
        import tensorflow as tf

        drop = partial(
            tf.nn.experimental.stateless_dropout,
            rate=rate,
            seed=self.next_seed(),
            rng_alg=_GENERATOR,
        )
        if self.rows is None:
            return drop(inputs, noise_shape=noise_shape)
        shape = tf.shape(inputs) if noise_shape is None else tf.convert_to_tensor(noise_shape)
        return inputs * drawn(lambda whole: drop(tf.ones(whole, inputs.dtype)), shape, self.rows)


@contextlib.contextmanager
def drawing_from(model: Any, draws: Draws) -> Iterator[None]:
    """Let the random layers of a model (dropout, noise) draw from ``draws`` inside the block."""
    replaced = []
    try:
        # Layers inside wrappers and the cells of recurrent layers too; `submodules` fails on these.
        for layer in model._flatten_layers():  # noqa: SLF001  # Keras offers no other way
            own = layer.__dict__.get("_random_generator")
            if own is not None:
                layer.__dict__["_random_generator"] = _StatelessGenerator(draws, own)
                replaced.append((layer, own))
        yield
    finally:
        for layer, own in replaced:
            layer.__dict__["_random_generator"] = own


class _StatelessGenerator:
    """What a random layer of tf-keras asks for: ``tf_keras.src.backend.RandomGenerator``."""

    def __init__(self, draws: Draws, own: Any) -> None:
        self._draws = draws
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def dropout(self, inputs: Any, rate: float, noise_shape: Any = None) -> Any:
        return self._draws.dropout(inputs, rate, noise_shape)

    def random_normal(
        self, shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, **_: Any
    ) -> Any:
        import tensorflow as tf

        return self._drawn(tf.random.stateless_normal, shape, mean, stddev, dtype)

    def truncated_normal(
        self, shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, **_: Any
    ) -> Any:
        import tensorflow as tf

        return self._drawn(tf.random.stateless_truncated_normal, shape, mean, stddev, dtype)

    def random_uniform(
        self,
        shape: Any,
        minval: float = 0.0,
        maxval: float | None = None,
        dtype: Any = None,
        **_: Any,
    ) -> Any:
        import tensorflow as tf

        most = 1.0 if maxval is None else maxval
        return self._drawn(tf.random.stateless_uniform, shape, minval, most, dtype)

    def make_seed_for_stateless_op(self) -> Any:
        """Return a seed for what a layer draws in a way of its own, other draws for each part."""
        import tensorflow as tf

        seed, rows = self._draws.next_seed(), self._draws.rows
        return seed if rows is None else tf.random.fold_in(seed, rows.begin, alg=_GENERATOR)

    def _drawn(self, draw: Any, shape: Any, first: float, second: float, dtype: Any) -> Any:
        seed = self._draws.next_seed()

        def of(shape: Any) -> Any:
            return draw(shape, seed, first, second, dtype or "float32", alg=_GENERATOR)

        return drawn(of, shape, self._draws.rows)

    def make_legacy_seed(self) -> int | None:
        return self._own.make_legacy_seed()  # type: ignore[no-any-return]
