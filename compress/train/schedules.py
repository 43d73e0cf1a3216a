"""How the learning rate moves while training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from msgspec import Meta
from typing_extensions import assert_never

from compress.train.losses import higher_is_better
from deploy.record import Record

Positive = Annotated[float, Meta(gt=0)]
Epochs = Annotated[float, Meta(ge=0.01)]
"""As many cycles as shorter ones make would take forever to count."""
Share = Annotated[float, Meta(ge=0, le=1)]
"""A fraction of the optimizer's learning rate."""


class _Schedule(Record, frozen=True, tag_field="kind"):
    warmup_epochs: Annotated[float, Meta(ge=0)] = 0.0
    """Epochs, or a part of one, in which the rate first climbs in equal steps to where the schedule
    begins; what the schedule says of epochs is counted from there. Step ``s`` (from 0) of ``w`` uses
    ``(s + 1) / (w + 1)`` of it."""


class Constant(_Schedule, frozen=True, tag="constant"):
    """The optimizer's learning rate from the first step to the last."""


class StepDecay(_Schedule, frozen=True, tag="step"):
    """The rate is multiplied by ``factor`` after every so many epochs, or after certain ones.

    As He et al., "Deep Residual Learning" (2016), section 4.2, divide it by 10 at set steps.
    """

    every_epochs: Epochs | None = None
    at_epochs: tuple[Positive, ...] = ()
    """Epochs that are over when the rate falls, in order; instead of ``every_epochs``."""
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1

    def __post_init__(self) -> None:
        if (self.every_epochs is None) == (not self.at_epochs):
            raise ValueError("a step schedule needs either every_epochs or at_epochs")
        if list(self.at_epochs) != sorted(set(self.at_epochs)):
            raise ValueError(f"at_epochs must increase, got {list(self.at_epochs)}")


class Listed(_Schedule, frozen=True, kw_only=True, tag="list"):
    """One learning rate for each epoch, written out; the optimizer's own is not used."""

    rates: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    """As many as there are epochs after the warm-up."""


class Exponential(_Schedule, frozen=True, tag="exponential"):
    """The rate is multiplied by ``factor ** (1 / steps of an epoch)`` at each step.

    Senior et al., "An empirical study of learning rates in deep neural networks" (2013).
    """

    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.9
    """What is left of the rate after each epoch."""


class Polynomial(_Schedule, frozen=True, tag="polynomial"):
    """From the optimizer's rate to ``final`` of it along ``(1 − t / T) ** power``.

    The "poly" policy of Chen et al., "DeepLab" (2018); power 1 is a straight line.
    """

    power: Positive = 1.0
    final: Share = 0.0


class Cosine(_Schedule, frozen=True, tag="cosine"):
    """Half a cosine from the optimizer's learning rate down, once or with restarts.

    Loshchilov and Hutter, "SGDR" (2017), equation 5.
    """

    final: Share = 0.0
    """Where each half cosine ends."""
    cycle_epochs: Epochs | None = None
    """Epochs until the first restart at the full rate; none restarts."""
    cycle_growth: Annotated[float, Meta(ge=1)] = 1.0
    """How many times as long each cycle is as the one before: their T_mult."""


class OneCycle(_Schedule, frozen=True, tag="one_cycle"):
    """Up to the optimizer's learning rate and down to nearly nothing, each along half a cosine.

    Smith and Topin, "Super-Convergence" (2018), with cosines for their straight lines.
    """

    rise: Annotated[float, Meta(gt=0, lt=1)] = 0.3
    """Fraction of the steps on the way up."""
    start: Share = 0.04
    final: Share = 4e-6
    momentum: tuple[Share, Share] | None = None
    """Smallest and largest momentum (of Adam: ``beta_1``): it falls while the rate rises, and the
    other way round. None leaves it alone."""

    def __post_init__(self) -> None:
        if self.momentum is not None and not self.momentum[0] < self.momentum[1] < 1:
            raise ValueError(
                f"momentum must be a smaller and a larger number below 1, got {list(self.momentum)}"
            )


class Plateau(_Schedule, frozen=True, tag="reduce_on_plateau"):
    """The rate is multiplied by ``factor`` when a metric has not improved for ``patience`` epochs.

    He et al., "Deep Residual Learning" (2016), section 3.4.
    """

    metric: str = "val_loss"
    factor: Annotated[float, Meta(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Meta(ge=1)] = 3
    min_delta: Annotated[float, Meta(ge=0)] = 1e-4
    """What counts as an improvement, in the metric's own unit."""
    cooldown: Annotated[int, Meta(ge=0)] = 0
    """Epochs after a reduction in which none is counted."""
    final: Share = 0.0
    """The rate falls no further than this fraction of the optimizer's."""


Schedule = Constant | StepDecay | Listed | Exponential | Polynomial | Cosine | OneCycle | Plateau


def why_not_scheduled(schedule: Schedule, *, epochs: int) -> str | None:
    """Say why a training of so many epochs cannot follow this schedule, or None if it can."""
    if schedule.warmup_epochs >= epochs:
        return (
            f"schedule.warmup_epochs must be below epochs ({epochs}), "
            f"got {schedule.warmup_epochs:g}"
        )
    if isinstance(schedule, Listed):
        wanted = math.ceil(epochs - schedule.warmup_epochs)
        if len(schedule.rates) != wanted:
            return (
                f"schedule.rates must be one learning rate for each of {wanted} epochs, "
                f"got {len(schedule.rates)}"
            )
    return None


def learning_rate(
    schedule: Schedule,
    peak: float,
    step: int,
    *,
    epochs: int,
    steps_per_epoch: int,
    history: Sequence[Mapping[str, float]] = (),
) -> float:
    """Return the learning rate of one step.

    A function of the step and of what the epochs so far brought, and of nothing else: whoever goes
    on from a checkpoint has nothing to restore.

    Args:
        schedule: how the rate moves.
        peak: the optimizer's learning rate.
        step: steps made before, over all epochs.
        epochs: length of the whole training, warm-up included.
        steps_per_epoch: steps in an epoch.
        history: the metrics of the epochs that are over; only a plateau looks at them.

    >>> learning_rate(Cosine(), 0.1, 4, epochs=2, steps_per_epoch=4)
    0.05
    >>> learning_rate(Constant(warmup_epochs=1), 0.1, 0, epochs=2, steps_per_epoch=4)
    0.02
    """
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    steps = max(1, epochs * steps_per_epoch - warmup)
    rate = partial(
        _rate, schedule, peak, steps=steps, steps_per_epoch=steps_per_epoch, history=history
    )
    if step < warmup:
        return rate(0) * (step + 1) / (warmup + 1)
    return rate(step - warmup)


def momentum(schedule: Schedule, step: int, *, epochs: int, steps_per_epoch: int) -> float | None:
    """Return the momentum that a schedule asks for at one step; None leaves the optimizer's."""
    if not isinstance(schedule, OneCycle) or schedule.momentum is None:
        return None
    warmup = round(schedule.warmup_epochs * steps_per_epoch)
    steps = max(1, epochs * steps_per_epoch - warmup)
    low, high = schedule.momentum
    height, _ = _one_cycle(schedule, max(0, step - warmup), steps)
    return low + (high - low) * (1 - height)


def _rate(
    schedule: Schedule,
    peak: float,
    step: int,
    *,
    steps: int,
    steps_per_epoch: int,
    history: Sequence[Mapping[str, float]],
) -> float:
    """Return the rate ``step`` steps after the warm-up, of ``steps`` there are."""
    epoch = step / steps_per_epoch
    match schedule:
        case Constant():
            return peak
        case StepDecay(every_epochs=None):
            return peak * schedule.factor ** sum(epoch >= at for at in schedule.at_epochs)
        case StepDecay(every_epochs=every):
            # A tiny share forgives that 3 * 0.1 is not 0.3.
            return peak * schedule.factor ** math.floor(epoch / (every or 1) + 1e-9)
        case Listed():
            return schedule.rates[min(int(epoch), len(schedule.rates) - 1)]
        case Exponential():
            return float(peak * schedule.factor**epoch)
        case Polynomial():
            left = float((1 - step / steps) ** schedule.power)
            return peak * (schedule.final + (1 - schedule.final) * left)
        case Cosine():
            height = _half_cosine(_place_in_cycle(schedule, epoch, steps / steps_per_epoch))
            return peak * (schedule.final + (1 - schedule.final) * height)
        case OneCycle():
            height, rising = _one_cycle(schedule, step, steps)
            floor = schedule.start if rising else schedule.final
            return peak * (floor + (1 - floor) * height)
        case Plateau():
            reductions = _reductions(schedule, history)
            return peak * max(schedule.final, schedule.factor**reductions)
        case _:
            assert_never(schedule)


def _half_cosine(place: float) -> float:
    """Fall from 1 at place 0 to 0 at place 1."""
    return (1 + math.cos(math.pi * place)) / 2


def _place_in_cycle(schedule: Cosine, epoch: float, epochs: float) -> float:
    """Return how much of the present cycle is over."""
    length = schedule.cycle_epochs
    if length is None:
        return epoch / epochs
    while epoch >= length - 1e-9:
        epoch -= length
        length *= schedule.cycle_growth
    return max(0.0, epoch) / length


def _one_cycle(schedule: OneCycle, step: int, steps: int) -> tuple[float, bool]:
    """Return the height between 0 and 1, and whether it is on its way up; the last step is 0."""
    last = steps - 1
    top = schedule.rise * last
    if step < top:
        return _half_cosine(1 - step / top), True
    return _half_cosine((step - top) / (last - top)) if last > top else 1.0, False


def _reductions(schedule: Plateau, history: Sequence[Mapping[str, float]]) -> int:
    """Count how often the epochs so far have given reason to reduce the rate."""
    sign = 1 if higher_is_better(schedule.metric) else -1
    best, waited, cooling, reductions = -math.inf, 0, 0, 0
    for epoch in history:
        value = sign * epoch[schedule.metric]
        waited += 1
        if value > best + schedule.min_delta:
            best, waited = value, 0
        if cooling:
            cooling, waited = cooling - 1, 0
        if waited >= schedule.patience:
            reductions, waited, cooling = reductions + 1, 0, schedule.cooldown
    return reductions
