"""What one process of a bench does: ``python -m deploy.bench_child``, a job in, an outcome out.

The job is JSON on stdin, the outcome JSON on stdout.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.errors import UserError
from deploy.memory import DoesNotFitError, limited_memory, peak_rss_bytes, rss_bytes
from deploy.record import Record, SessionOptions
from deploy.session import Model, open_model, random_inputs

STEADY_WITHIN = 0.05
_WARM_UP_WINDOWS = 20
_BOOKKEEPING_BYTES = 16 << 20
"""What the times of all calls may take beside the models."""


class Conditions(Record, frozen=True):
    """What holds for every process of a bench."""

    session: SessionOptions
    batch: int
    seed: int
    inputs: str | None
    """An ``.npy`` file of model inputs ``(n, ...)``, or None for random ones."""
    trace: str
    """A file in which the process keeps the index of the model it is at, for when it dies."""


class Job(Record, frozen=True):
    """Files, by absolute path, and the conditions to open them under."""

    models: tuple[str, ...]
    conditions: Conditions


class OpenJob(Job, frozen=True, tag_field="kind", tag="open"):
    """Open one model in this fresh process and run it."""

    memory_limit_bytes: int | None = None
    """What the process may hold in all; None for as much as it asks for."""


class TimeJob(Job, frozen=True, tag_field="kind", tag="time"):
    """Time several sessions of every model, interleaved."""

    process: int
    sessions: int
    rounds: int
    block_ms: float
    memory_limit_bytes: int | None = None
    """What each session may hold if it were alone in the process, as in ``OpenJob``."""


class Opened(Record, frozen=True, tag_field="kind", tag="opened"):
    """What an ``OpenJob`` saw."""

    load_ms: float
    """From file to session; importing ONNX Runtime comes before."""
    empty_rss_bytes: int
    """Peak before the model was opened: Python, numpy and ONNX Runtime."""
    peak_rss_bytes: int
    """Of the whole process: those, the model and one run of one sample."""
    batch_peak_rss_bytes: int
    """Of the whole process, one run at the batch included."""


class SessionTimes(Record, frozen=True):
    """What one session took."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    batch_p50_ms: float
    steady: bool
    """Whether warming up ended because the times had settled."""


class Timed(Record, frozen=True, tag_field="kind", tag="timed"):
    """What a ``TimeJob`` saw."""

    models: tuple[tuple[SessionTimes, ...], ...]
    """Per model, its sessions."""
    waited: float
    """Fraction of the timed span in which the thread was not running: others had the processor."""


class Refused(Record, frozen=True, tag_field="kind", tag="refused"):
    """The user's mistake that ended the job."""

    reason: str


class TooLarge(Record, frozen=True, tag_field="kind", tag="too_large"):
    """The limit of memory was too low."""


Outcome = Opened | Timed | Refused | TooLarge


def main() -> None:
    """Do the job on stdin and write its outcome to stdout."""
    job: OpenJob | TimeJob = msgspec.json.decode(sys.stdin.buffer.read(), type=OpenJob | TimeJob)
    trace = os.open(job.conditions.trace, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def at(index: int) -> None:
        os.pwrite(trace, index.to_bytes(4, "little"), 0)

    outcome: Outcome
    try:
        outcome = _open(job, at) if isinstance(job, OpenJob) else _time(job, at)
    except DoesNotFitError:
        outcome = TooLarge()
    except UserError as error:
        outcome = Refused(reason=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def _open(job: OpenJob, at: Callable[[int], None]) -> Opened:
    at(0)
    path, conditions = Path(job.models[0]), job.conditions
    empty = peak_rss_bytes()
    with limited_memory(job.memory_limit_bytes):
        start = time.perf_counter_ns()
        model = open_model(path, conditions.session)
        load_ms = (time.perf_counter_ns() - start) / 1e6
        model.run(_inputs(model, conditions, 1))
        peak = peak_rss_bytes()
        # A model that cannot run at this batch is better met here than while timing.
        model.run(_inputs(model, conditions, conditions.batch))
    return Opened(
        load_ms=load_ms,
        empty_rss_bytes=empty,
        peak_rss_bytes=peak,
        batch_peak_rss_bytes=peak_rss_bytes(),
    )


def _inputs(model: Model, conditions: Conditions, batch: int) -> npt.NDArray[Any]:
    """Return ``batch`` inputs: those given, over and over, or random ones."""
    if model.fixed_batch is not None and conditions.batch != model.fixed_batch:
        raise UserError(
            f"{model.where}: takes one sample at a time, so it cannot be timed at a batch of "
            f"{conditions.batch}; bench it with a batch of 1"
        )
    if conditions.inputs is None:
        return random_inputs(model, batch, seed=conditions.seed)
    # Mapped: samples that are not used are no part of the peak of memory.
    given = np.load(conditions.inputs, mmap_mode="r", allow_pickle=False)
    if given.shape[1:] != model.input_shape or len(given) == 0:
        raise UserError(
            f"{model.where}: inputs of shape {given.shape} do not fit the input "
            f"{model.input_name!r}, which takes (n, {', '.join(map(str, model.input_shape))})"
        )
    rows = np.arange(batch) % len(given)
    return np.ascontiguousarray(model.cast(given[rows]))


@dataclass(slots=True, kw_only=True)
class _Lane:
    """One session that takes part in the rounds, with one batch size."""

    index: int
    model: Model
    inputs: npt.NDArray[Any]
    steady: bool = False
    calls: int = 1
    """Timed calls in a block."""
    times_ns: list[int] = field(default_factory=list)

    def warm_up(self, block_ms: float) -> None:
        """Run windows of one block each until two medians in a row lie near the one before."""
        before, settled = float("inf"), 0
        for _ in range(_WARM_UP_WINDOWS):
            end = time.perf_counter_ns() + int(block_ms * 1e6)
            times = self._run(1)
            while time.perf_counter_ns() < end:
                times += self._run(1)
            median = float(np.median(times))
            settled = settled + 1 if abs(median / before - 1) <= STEADY_WITHIN else 0
            before = median
            if settled == 2:
                break
        self.steady = settled == 2
        self.calls = max(1, round(block_ms * 1e6 / before))

    def block(self) -> None:
        """Run one call that pulls the model back into the caches, then the timed ones."""
        self.model.run(self.inputs)
        self.times_ns += self._run(self.calls)

    def quantiles_ms(self, *shares: float) -> list[float]:
        return [float(q) / 1e6 for q in np.quantile(self.times_ns, shares)]

    def _run(self, calls: int) -> list[int]:
        run, inputs, clock = self.model.run, self.inputs, time.perf_counter_ns
        times = []
        for _ in range(calls):
            start = clock()
            run(inputs)
            times.append(clock() - start)
        return times


def _time(job: TimeJob, at: Callable[[int], None]) -> Timed:
    sessions = len(job.models) * job.sessions
    with limited_memory(_limit_of(sessions, job.memory_limit_bytes)):
        return _time_all(job, at)


def _limit_of(sessions: int, limit_bytes: int | None) -> int | None:
    """Return what a process may hold that keeps several sessions open, each allowed the same.

    Python, numpy and the runtime count once; what the limit leaves beside them, once a session.
    """
    if limit_bytes is None:
        return None
    empty = rss_bytes() or 0  # where it is not told, no limit can be set either
    return limit_bytes + max(0, limit_bytes - empty) * (sessions - 1) + _BOOKKEEPING_BYTES


def _time_all(job: TimeJob, at: Callable[[int], None]) -> Timed:
    rng = np.random.default_rng((job.conditions.seed, job.process))
    # Where a session's memory lies depends on what was opened before it: that order is random too.
    places = rng.permutation(np.repeat(np.arange(len(job.models)), job.sessions)).tolist()
    single, batched = [], []
    for index in places:
        at(index)
        model = open_model(Path(job.models[index]), job.conditions.session)
        inputs = _inputs(model, job.conditions, job.conditions.batch)
        one = np.ascontiguousarray(inputs[:1])
        single.append(_Lane(index=index, model=model, inputs=one))
        batched.append(_Lane(index=index, model=model, inputs=inputs))
    gc.disable()
    for lane in single + batched:
        at(lane.index)
        lane.warm_up(job.block_ms)
    wall, running = time.perf_counter_ns(), time.thread_time_ns()
    _interleave(single, job.rounds, rng, at)
    _interleave(batched, max(1, job.rounds // 2), rng, at)
    wall, running = time.perf_counter_ns() - wall, time.thread_time_ns() - running
    seen: list[list[SessionTimes]] = [[] for _ in job.models]
    for one_lane, batch_lane in zip(single, batched, strict=True):
        p50, p90, p99 = one_lane.quantiles_ms(0.5, 0.9, 0.99)
        seen[one_lane.index].append(
            SessionTimes(
                p50_ms=p50,
                p90_ms=p90,
                p99_ms=p99,
                batch_p50_ms=batch_lane.quantiles_ms(0.5)[0],
                steady=one_lane.steady and batch_lane.steady,
            )
        )
    return Timed(models=tuple(map(tuple, seen)), waited=max(0.0, 1 - running / wall))


def _interleave(
    lanes: Sequence[_Lane], rounds: int, rng: np.random.Generator, at: Callable[[int], None]
) -> None:
    """Let every lane run one block a round, in a new random order each round."""
    for _ in range(rounds):
        for place in rng.permutation(len(lanes)):
            at(lanes[place].index)
            lanes[place].block()


if __name__ == "__main__":
    main()
