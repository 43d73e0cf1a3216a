"""Which learning rate to begin with: the range test."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.task import Task
from compress.train.batches import ahead, cut, read_batch
from compress.train.draws import order
from compress.train.fit import Fit, make_step, why_not_fitted
from compress.train.regularise import why_not_dropped
from compress.train.trainable import why_not_trained
from deploy.errors import UserError, needs_extra
from deploy.record import Record

_SMOOTHING = 0.9
"""How much of the mean loss is kept from step to step."""
_HOPELESS = 3.0
"""The test ends when the smoothed loss is this many times its smallest."""


class RateCurve(Record, frozen=True):
    """The loss against the learning rate while the rate climbs from step to step."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Smoothed; as many as there are rates."""
    suggestion: float
    """Where the loss falls fastest per decade of the rate."""
    largest: float
    """Where it was smallest: beyond, training gets worse."""


def find_learning_rate(
    model: Any,
    task: Task,
    config: Fit,
    *,
    seed: int,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 150,
) -> RateCurve:
    """Train for a few steps while the learning rate climbs, in equal ratios, and watch the loss.

    Smith, "Cyclical Learning Rates for Training Neural Networks" (2017), section 3.3. The model's
    weights are worthless afterwards. The schedule of ``config`` is not looked at; of full-batch
    descent, single batches stand for the whole.

    Args:
        model: an untrained tf-keras model.
        task: what it is to learn.
        config: how: batch size, optimizer, loss, regularisation.
        seed: of the order of samples and of what is drawn.
        lowest: the first rate.
        highest: the last one, if the loss does not explode before.
        steps: how many steps.

    Raises:
        UserError: if the range is empty, the model does not fit the task, or the loss never falls.
    """
    why_not = (
        _why_no_range(lowest=lowest, highest=highest, steps=steps)
        or why_not_fitted(task, config)
        or why_not_trained(model, task)
        or why_not_dropped(model, config.regularise)
    )
    if why_not is not None:
        raise UserError(why_not)
    with needs_extra("compress"):
        import tf_keras

    tf_keras.utils.set_random_seed(seed)
    rates = np.geomspace(lowest, highest, steps)
    losses: list[float] = []
    mean = 0.0
    with contextlib.closing(make_step(model, task, config, seed=seed)) as step:
        batches = ahead(partial(read_batch, task, task.train), _parts(task, config, seed, steps))
        with contextlib.closing(batches):  # type: ignore[type-var]  # a generator
            for at, (x, y) in enumerate(batches):
                # The loss of a batch is taken before its step, so it tells of the rates before.
                rate = float(rates[at])
                loss = float(step.update(x, y, samples=len(x), at=at, rate=rate, momentum=None))
                mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
                losses.append(mean / (1 - _SMOOTHING ** (at + 1)))
                if not math.isfinite(losses[-1]) or losses[-1] > _HOPELESS * min(losses):
                    break
    return _read(rates, np.array(losses))


def draw_rate_curve(curve: RateCurve, path: Path) -> None:
    """Draw a curve with its suggestion; the suffix says how: ``.svg``, ``.png`` or ``.pdf``."""
    with needs_extra("report"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(curve.rates, curve.losses, color="#1f4e79")
    axes.axvline(curve.suggestion, color="#b3541e", linestyle="--")
    axes.annotate(
        f"{curve.suggestion:.2g}",
        (curve.suggestion, max(curve.losses)),
        xytext=(4, -4),
        textcoords="offset points",
        va="top",
        color="#b3541e",
    )
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed")
    figure.savefig(path, dpi=150)


def _parts(task: Task, config: Fit, seed: int, steps: int) -> list[Any]:
    """Return the batches of the test: as many epochs as it takes, whole batches only."""
    samples, size = len(task.train), config.batch_size
    size = min(size, samples)  # full-batch descent may give more
    each = samples // size
    return [
        part
        for epoch in range(math.ceil(steps / each))
        for part in cut(order(samples, seed=seed, epoch=epoch), size)[:each]
    ][:steps]


def _read(rates: Any, losses: Any) -> RateCurve:
    """Read the suggestion off a curve; the first steps say nothing yet."""
    kept = losses[np.isfinite(losses)]
    used, first = rates[: len(kept)], len(kept) // 10
    bottom = first + int(np.argmin(kept[first:]))
    if bottom <= first + 1:
        raise UserError(
            "find-learning-rate: the loss never falls; begin at a lower rate, take more steps, or "
            "look for NaN and unscaled values in the data"
        )
    slopes = np.gradient(kept, np.log10(used))
    steepest = first + int(np.argmin(slopes[first : bottom + 1]))
    return RateCurve(
        rates=tuple(float(rate) for rate in used),
        losses=tuple(float(loss) for loss in kept),
        suggestion=float(used[steepest]),
        largest=float(used[bottom]),
    )


def _why_no_range(*, lowest: float, highest: float, steps: int) -> str | None:
    if not 0 < lowest < highest < math.inf:
        return f"lowest and highest: must be finite and rise from above 0, got {lowest:g} and {highest:g}"
    if steps < 20:
        return f"steps: a curve needs at least 20, got {steps}"
    return None
