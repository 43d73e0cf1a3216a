"""An int8 file laid out for the kernels that run it: the same numbers, sooner."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from compress.data.task import Task
from compress.quantize.channels_last import spare_transposes, target_of
from compress.quantize.outputs import outputs_of
from compress.quantize.width_to_depth import check_columns, columns_that_fit, width_to_depth
from deploy.bench import Bench, race
from deploy.errors import ParityError, UserError
from deploy.kernels import int8_layers
from deploy.machine import this_target
from deploy.record import Record

Array = npt.NDArray[Any]

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
        ParityError: if a layer ran in int8 and would no more, or the other way.
    """
    made = spare_transposes(width_to_depth(model, columns))
    target = target_of(model)
    before, after = (set(int8_layers(one, target=target)) for one in (model, made))
    if before != after:
        raise ParityError(
            f"laid out, {', '.join(sorted(before ^ after))} would not run with the numbers that "
            "it ran with; leave the model as it is, and tell us"
        )
    return made


def require_same_answers(model: Any, made: Any, x: Array, *, logarithms: bool) -> None:
    """Raise a ParityError if two ``ModelProto`` do not give the same outputs.

    Args:
        model: the one.
        made: the other, laid out.
        x: inputs ``(n, ...)``; 256 of them are looked at.
        logarithms: as in ``outputs_of``.
    """
    before, after = (
        outputs_of(one, x[:_PARITY_SAMPLES], logarithms=logarithms) for one in (model, made)
    )
    differ = before != after  # of logarithms, −∞ equals −∞
    moved = np.subtract(before, after, where=differ, out=np.zeros_like(before))
    apart = np.abs(moved).max(initial=0)
    largest = np.abs(before, where=np.isfinite(before), out=np.zeros_like(before)).max(initial=1)
    if not apart <= _TOLERANCE * largest:
        raise ParityError(
            f"a layout moved outputs by {apart / largest:.3g} of the largest, more than {_TOLERANCE:g}"
        )


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
        task: its ``validation.x``, or if there is none ``calibration.x``, shows that no answer changes.
        seed: of the order in which models are timed.
        on_timing: hears how the timing gets on.

    Raises:
        UserError: if the model has no int8 layers of this form, or is for another machine and its
            columns are to be timed, or as ``width_to_depth`` does.
        ParityError: as ``laid_out`` does, or if an answer changed.
    """
    refuse_unfit_layout(model, step)
    columns = step.columns
    if columns == "auto":
        timed = timing(model, step.threads, seed=seed, on_timing=on_timing)
        columns = dict(columns_by_timing(model, timed))
    made = laid_out(model, columns)
    x = task.validation.x if len(task.validation) else task.calibration.x
    require_same_answers(model, made, x, logarithms=task.kind == "classification")
    return made, msgspec.structs.replace(step, columns=columns)


def refuse_unfit_layout(model: Any, step: Int8Layout) -> None:
    """Raise a UserError for a model that a step cannot lay out, before anything is timed."""
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        raise UserError(
            "int8_layout: the model has no int8 layers between QuantizeLinear and DequantizeLinear; "
            "quantize it first: lightship quantize --kind static, or quantize_aware in a recipe"
        )
    if step.columns != "auto":
        check_columns(model, step.columns)
    elif (target := target_of(model)) not in {None, this_target()}:
        raise UserError(
            f"int8_layout: the model is for {target} and this is {this_target()}, whose times say "
            "nothing of it; say how many columns a layer computes at once, as columns = "
            "{ conv1 = 4 } in a recipe and --columns conv1=4 on the command line"
        )


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
