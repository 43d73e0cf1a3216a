"""An int8 file laid out for the kernels that run it: the same numbers, sooner."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from compress.data.task import Task
from compress.quantize.channels_last import spare_transposes
from compress.quantize.outputs import outputs_of
from compress.quantize.width_to_depth import columns_that_fit, width_to_depth
from deploy.bench import Bench, race
from deploy.errors import ParityError, UserError
from deploy.record import Record

Columns = Mapping[str, int]
"""How many columns of its result a convolution computes at once, by its name; of others it is one."""
OnTiming = Callable[[str, int, int], None]
"""Hears what is being done, how many parts of it are over, and of how many."""

_TIMED = Bench(processes=10, sessions_per_process=1, rounds=12, block_ms=2.0, batch=1)
_WORTH = 1.01
"""What several columns at once have to gain: less is noise."""
_PARITY_SAMPLES = 256
_TOLERANCE = 1e-6
"""The integers are equal; what is left in float may be added up in another order."""


class Int8Layout(Record, frozen=True, tag_field="kind", tag="int8_layout"):
    """Write an int8 model so that ONNX Runtime's kernels run it faster. No answer changes.

    Transposes are spared, and convolutions of few channels, as of a grey image, compute several
    columns of their result at once: docs/quantization.md. ``quantize_mixed`` does the same.
    """

    columns: Literal["auto"] | dict[str, Annotated[int, Meta(ge=2)]] = "auto"
    """How many columns a convolution computes at once, by its name; "auto" times what fits, on this
    machine."""
    threads: Annotated[int, Meta(ge=1)] = 1
    """Threads to time with; use those of the device."""


def laid_out(model: Any, columns: Columns) -> Any:
    """Return an int8 ``ModelProto`` that gives the same numbers, laid out for the kernels.

    Args:
        model: of QuantizeLinear and DequantizeLinear, as ``quantize_static`` gives; left alone.
        columns: as in ``width_to_depth``.

    Raises:
        UserError: as ``width_to_depth`` does.
    """
    return spare_transposes(width_to_depth(model, columns))


def int8_layout(
    model: Any,
    step: Int8Layout,
    task: Task,
    *,
    seed: int,
    on_timing: OnTiming | None = None,
) -> tuple[Any, Int8Layout]:
    """Return an int8 ``ModelProto`` laid out for the kernels, and the step with its columns.

    Args:
        model: as in ``laid_out``.
        step: what to time, and how.
        task: its ``validation.x`` shows that no answer changes; may be empty.
        seed: of the order in which models are timed.
        on_timing: hears how the timing gets on.

    Raises:
        UserError: if the model has no int8 layers of this form, or as ``width_to_depth`` does.
        ParityError: if an answer changed.
    """
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise UserError(
            "int8_layout: the model has no int8 layers between QuantizeLinear and DequantizeLinear; "
            "quantize it first, with quantize_static or quantize_aware"
        )
    if step.columns == "auto":
        timed = timing(model, step.threads, seed=seed, on_timing=on_timing)
        step = msgspec.structs.replace(step, columns=dict(columns_by_timing(model, timed)))
    made = laid_out(model, step.columns if step.columns != "auto" else {})
    x = task.validation.x[:_PARITY_SAMPLES]
    if len(x):
        before, after = (outputs_of(one, x) for one in (model, made))
        apart = float(np.abs(before - after).max() / max(1.0, np.abs(before).max()))
        if not apart <= _TOLERANCE:
            raise ParityError(f"int8_layout moved outputs by {apart:.3g}, more than {_TOLERANCE:g}")
    return made, step


def columns_by_timing(model: Any, timed: Callable[[Sequence[Any]], Sequence[float]]) -> Columns:
    """Return how many columns each int8 convolution of few channels had best compute at once.

    One layer after the other, in the order of the graph.

    Args:
        model: an int8 ``ModelProto``, as in ``laid_out``.
        timed: returns how fast some ``ModelProto`` are, in one run.
    """
    chosen: dict[str, int] = {}
    for name, counts in columns_that_fit(model).items():
        choices = [chosen, *({**chosen, name: count} for count in counts)]
        speeds = timed([laid_out(model, columns) for columns in choices])
        best = int(np.argmax(speeds))
        if speeds[best] > speeds[0] * _WORTH:
            chosen = choices[best]
    return chosen


def timing(
    reference: Any, threads: int, *, seed: int, on_timing: OnTiming | None = None
) -> Callable[[Sequence[Any]], Sequence[float]]:
    """Return what times ``ModelProto`` on this machine and gives their speed over a reference's.

    Args:
        reference: a ``ModelProto``; timed beside them in each run.
        threads: to time with.
        seed: of the order in which models are timed.
        on_timing: hears how each run gets on.
    """
    import onnx

    settings = msgspec.structs.replace(_TIMED, threads=threads)

    def timed(models: Sequence[Any]) -> Sequence[float]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder, f"{index}.onnx") for index in range(len(models) + 1)]
            for path, model in zip(paths, (reference, *models), strict=True):
                onnx.save(model, path)
            hears = on_timing or (lambda *_: None)
            seen = race(
                paths,
                settings,
                seed=seed,
                on_progress=lambda done, total: hears(f"timing {len(models)} layouts", done, total),
            )
        return [one.value for one in seen[1:]]

    return timed
