"""How long layers of each width take on a machine, and which widths are worth having there.

Latency is a staircase in channels: kernels work on blocks of 8 or 16, so that 63 channels may cost
more than 64. Where the steps lie is the machine's and the runtime's own, and is measured.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deploy.bench import SYSTEMATIC, Bench, log_p50, noise, timed_together
from deploy.errors import UserError, naming_what_was_given, needs_extra
from deploy.intervals import bootstrap_mean
from deploy.machine import SCHEMES, Target, this_environment, this_target
from deploy.probes import Operator, Positive, Precision, Probe, probe_model
from deploy.record import Environment, Interval, Record, SessionOptions
from deploy.session import require_startable

_MOST_BYTES = 1 << 24

OnProgress = Callable[[int, int], None]
Timing = Callable[[Sequence[Path], Bench, int, OnProgress], "Times"]
"""From models, settings and a seed to their times."""


class Times(Record, frozen=True):
    """What timing some models gave."""

    log_p50_ms: tuple[tuple[float, ...], ...]
    """Per model, the logarithm of its median time in each process; one order of processes for all."""
    warnings: tuple[str, ...] = ()


class MeasureWidths(Record, frozen=True):
    """Which widths to time, and how. A few minutes as it stands."""

    conv: tuple[Positive, ...] = tuple(range(4, 129, 4))
    """Channels in and out of convolutions; empty times none."""
    dense: tuple[Positive, ...] = tuple(range(16, 513, 16))
    """Units in and out of dense layers; empty times none."""
    precisions: tuple[Precision, ...] = ("float32", "int8")
    probe: Probe = Probe()
    threads: Positive = 1
    processes: Annotated[int, Meta(ge=5)] = 10
    """Independent repetitions: the interval is over these."""

    def __post_init__(self) -> None:
        require_startable(self.threads)
        if not self.precisions or not (self.conv or self.dense):
            raise ValueError(
                "gives no layer to time: name widths of conv or dense, and a precision"
            )

    @property
    def layers(self) -> list[tuple[Operator, Precision, int]]:
        """What is timed, each once, in the order of the table."""
        widths: tuple[tuple[Operator, tuple[int, ...]], ...] = (
            ("conv", self.conv),
            ("dense", self.dense),
        )
        return [
            (operator, precision, width)
            for operator, asked in widths
            for precision in sorted(set(self.precisions))
            for width in sorted(set(asked))
        ]


class WidthTime(Record, frozen=True):
    """How long one layer takes, of as many inputs as outputs."""

    operator: Operator
    precision: Precision
    width: Positive
    """Channels of a convolution, units of a dense layer."""
    layer_us: Interval
    """Median, batch 1, with its interval beside the other layers of the table: what slows all of
    them alike is no part of it."""


class WidthTable(Record, frozen=True, tag_field="kind", tag="lightship-widths"):
    """What one machine saw; ``lightship widths`` writes it, channel pruning reads it."""

    environment: Environment
    session: SessionOptions
    """The options that were timed, which are the ones that ship."""
    probe: Probe
    processes: int
    measured_at: str
    """ISO 8601."""
    times: tuple[WidthTime, ...]
    """By operator, precision and width, ascending."""
    warnings: tuple[str, ...] = ()
    """What made this machine hard to measure on, if anything did."""

    def __post_init__(self) -> None:
        keys = [(time.operator, time.precision, time.width) for time in self.times]
        if not keys or any(one >= other for one, other in pairwise(keys)):
            raise ValueError("times must ascend by operator, precision and width, each once")
        for time in self.times:
            seen = time.layer_us
            if not 0 < seen.low <= seen.value <= seen.high < math.inf:
                raise ValueError(
                    f"the time of width {time.width} must be positive and inside its interval, "
                    f"got {seen.low:g} <= {seen.value:g} <= {seen.high:g}"
                )


def measure_widths(
    settings: MeasureWidths,
    *,
    seed: int,
    now: datetime,
    on_progress: OnProgress = lambda _done, _total: None,
    timing: Timing | None = None,
) -> WidthTable:
    """Time layers of many widths on this machine, interleaved, in several processes.

    Each width is a model of a few equal layers in a row; all models run in small blocks, in random
    order, as in ``deploy.bench``. A layer's time is its model's over the number of layers, so that
    it holds a share of one call of the runtime.

    Args:
        settings: which widths, and how.
        seed: decides the order of everything and the bootstrap.
        now: when it is measured.
        on_progress: called with processes done and processes in all.
        timing: what times the models; None is ``deploy.bench``.

    Raises:
        UserError: as ``deploy.bench.bench`` does.
    """
    environment, scheme = this_environment(), SCHEMES[this_target()]
    layers = settings.layers
    bench = Bench(
        threads=settings.threads,
        batch=1,
        processes=settings.processes,
        sessions_per_process=1,
        rounds=12,
        block_ms=1.0,
    )
    with tempfile.TemporaryDirectory(prefix="lightship-widths-") as folder:
        models = []
        for operator, precision, width in layers:
            models.append(Path(folder, f"{operator}-{precision}-{width}.onnx"))
            models[-1].write_bytes(probe_model(operator, precision, width, settings.probe, scheme))
        with naming_what_was_given({str(model.absolute()): model.stem for model in models}):
            times = (timing or _timed)(models, bench, seed, on_progress)
    intervals = layer_times(np.array(times.log_p50_ms), settings.probe.depth, seed=seed)
    return WidthTable(
        environment=environment,
        session=bench.session,
        probe=settings.probe,
        processes=settings.processes,
        measured_at=now.isoformat(timespec="seconds"),
        times=tuple(
            WidthTime(operator=operator, precision=precision, width=width, layer_us=seen)
            for (operator, precision, width), seen in zip(layers, intervals, strict=True)
        ),
        warnings=times.warnings,
    )


def _timed(models: Sequence[Path], bench: Bench, seed: int, on_progress: OnProgress) -> Times:
    environment = this_environment()
    timed = timed_together(models, bench, seed=seed, on_progress=on_progress)
    return Times(
        log_p50_ms=tuple(tuple(log_p50(timed, index)) for index in range(len(models))),
        warnings=tuple(noise(environment, bench, timed)),
    )


def layer_times(log_p50_ms: npt.NDArray[np.float64], depth: int, *, seed: int) -> list[Interval]:
    """Return the time in µs of one layer of each model, with an interval for comparing them.

    What a process slows or speeds alike for all models says nothing of one beside the other, so it
    is taken off before the bootstrap over processes.

    Args:
        log_p50_ms: logarithm of median times, ``(models, processes)``.
        depth: layers of every model.
        seed: of the bootstrap.
    """
    common = log_p50_ms.mean(axis=0)
    beside = log_p50_ms - common + common.mean()
    rng = np.random.default_rng(seed)

    def us(log_ms: float) -> float:
        return 1000 * math.exp(log_ms) / depth

    return [
        Interval(value=us(seen.value), low=us(seen.low), high=us(seen.high))
        for seen in (bootstrap_mean(row, rng) for row in beside)
    ]


def worthwhile_widths(
    table: WidthTable, operator: Operator = "conv", precision: Precision = "float32"
) -> list[int]:
    """Return the widths, ascending, that are measurably faster than every larger one.

    These are the steps of the staircase: of widths that cost the same, within their intervals and
    ``SYSTEMATIC``, only the largest is worth having, and one that costs more than a larger one
    never is. The largest width of the table always is.

    Raises:
        UserError: if the table has no such layers.
    """
    times = [t for t in table.times if (t.operator, t.precision) == (operator, precision)]
    if not times:
        there = sorted({f"{time.operator} {time.precision}" for time in table.times})
        raise UserError(
            f"widths: the table has no times of {operator} layers in {precision}, only of "
            f"{', '.join(there)}; measure them too"
        )
    kept: list[int] = []
    cheapest_us = math.inf
    """Lower end of the fastest of the larger widths."""
    for time in reversed(times):
        if time.layer_us.high * (1 + SYSTEMATIC) < cheapest_us:
            kept.append(time.width)
        cheapest_us = min(cheapest_us, time.layer_us.low)
    return kept[::-1]


def read_widths(path: Path) -> WidthTable:
    """Return the table in a file.

    Raises:
        UserError: if it cannot be read or is no table.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); lightship widths --out writes a table"
        ) from error
    return decode_widths(content, where=str(path))


def decode_widths(content: bytes, *, where: str) -> WidthTable:
    """Return the table that a JSON text is.

    Raises:
        UserError: if it is none.
    """
    if len(content) > _MOST_BYTES:
        raise UserError(
            f"{where}: is larger than any table of widths; give what widths --out wrote"
        )
    try:
        return msgspec.json.decode(content, type=WidthTable)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{where}: no table of widths ({error}); lightship widths --out writes one"
        ) from error


def why_not_for(table: WidthTable, target: Target) -> str | None:
    """Say why a table says nothing of a target, or None if it may."""
    measured = table.environment.target
    if measured == target:
        return None
    return (
        f"the table of widths was measured on {table.environment.cpu} ({measured}), which is no "
        f"{target}; measure on the device with lightship widths --on USER@HOST"
    )


def doubts(table: WidthTable, environment: Environment, session: SessionOptions) -> list[str]:
    """Say how a table's machine differs from one where models are going to run.

    Args:
        table: the table.
        environment: that machine.
        session: how models are opened there.
    """
    was = table.environment
    release, there = (e.versions.get("onnxruntime", "") for e in (was, environment))
    pairs = (
        ("a", was.cpu, environment.cpu),
        ("ONNX Runtime", release, there),
        ("threads:", str(table.session.threads), str(session.threads)),
    )
    return [
        f"the table of widths was measured with {what} {old}, here it is {new}: steps may differ"
        for what, old, new in pairs
        if old != new
    ]


def plot_widths(table: WidthTable, path: Path) -> None:
    """Draw a table as staircases, one picture an operator, with the widths worth having marked."""
    with needs_extra("report"):
        from matplotlib.figure import Figure

    operators = list(dict.fromkeys(time.operator for time in table.times))
    figure = Figure(figsize=(5.6 * len(operators), 4.0), layout="constrained")
    for column, operator in enumerate(operators, start=1):
        axes: Any = figure.add_subplot(1, len(operators), column)
        colours: dict[Precision, str] = {"float32": "C0", "int8": "C1"}
        for precision, colour in colours.items():
            times = [t for t in table.times if (t.operator, t.precision) == (operator, precision)]
            if not times:
                continue
            worth = set(worthwhile_widths(table, operator, precision))
            widths = [time.width for time in times]
            values = [time.layer_us.value for time in times]
            # A width up to the next measured one is drawn with the time of that one.
            axes.step(widths, values, where="pre", color=colour, linewidth=1, label=precision)
            axes.vlines(
                widths, [t.layer_us.low for t in times], [t.layer_us.high for t in times],
                color=colour, linewidth=1,
            )  # fmt: skip
            kept = [(time.width, time.layer_us.value) for time in times if time.width in worth]
            axes.scatter(*zip(*kept, strict=True), s=22, color=colour, zorder=3)
        axes.set_yscale("log")
        axes.set_title(f"{operator}, {table.environment.cpu}", fontsize=9)
        axes.set_xlabel("width; dots are worth having")
        axes.set_ylabel("time of a layer, µs")
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path)
