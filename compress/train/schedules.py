"""How the learning rate moves while training goes on."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from deploy.errors import needs_extra
from deploy.record import Record


class Constant(Record, frozen=True, tag_field="kind", tag="constant"):
    """The optimizer's learning rate from the first step to the last."""


class Cosine(Record, frozen=True, tag_field="kind", tag="cosine"):
    """Half a cosine from the optimizer's learning rate down to zero, after an optional warm-up.

    Loshchilov and Hutter, "SGDR" (2017), equation 5 without restarts. During the warm-up the
    rate climbs in equal steps; step ``s`` (from 0) of ``w`` uses ``(s + 1) / (w + 1)`` of it.
    """

    warmup_epochs: Annotated[float, Meta(ge=0)] = 0.0


Schedule = Constant | Cosine


def learning_rate(schedule: Schedule, peak: float, *, epochs: int, steps_per_epoch: int) -> Any:
    """Return what a Keras optimizer takes as its learning rate: a number or a function of the step.

    Args:
        schedule: how the rate moves.
        peak: the largest rate, the one the optimizer was configured with.
        epochs: length of the whole training, warm-up included.
        steps_per_epoch: batches in an epoch.
    """
    match schedule:
        case Constant():
            return peak
        case Cosine():
            with needs_extra("compress"):
                from tf_keras.optimizers.schedules import CosineDecay

            steps = epochs * steps_per_epoch
            warmup = round(schedule.warmup_epochs * steps_per_epoch)
            if warmup == 0:
                return CosineDecay(peak, decay_steps=steps)
            return CosineDecay(
                peak / (warmup + 1),
                decay_steps=max(1, steps - warmup),
                warmup_target=peak,
                warmup_steps=warmup,
            )
