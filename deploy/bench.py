"""How fast models are beside each other, with the machine's noise in the interval.

Timing one model and then the other lies, and so does one session per model: the same file opened
eight times in one process may give medians that differ by 40 %. So every process opens every model
several times, runs small blocks of all sessions in random order, and is itself one of several.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from deploy.bench_child import (
    STEADY_WITHIN,
    Conditions,
    Opened,
    OpenJob,
    Outcome,
    Refused,
    Timed,
    TimeJob,
    TooLarge,
)
from deploy.errors import UserError
from deploy.intervals import bootstrap_mean
from deploy.machine import this_environment
from deploy.memory import DoesNotFitError
from deploy.record import Environment, Interval, Latency, Measurement, Record, SessionOptions
from deploy.session import require_startable
from deploy.sizes import format_size

Milliseconds = npt.NDArray[np.float64]

SYSTEMATIC = 0.01
"""What repetition cannot average away, added to both ends of a speed-up.

Equal work may differ by the layout of code and data that a file or a process start happens to
bring (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong!",
ASPLOS). Nothing ships for less than 1 %, so nothing less is called a difference.
"""
_OPENINGS = 3
_NOISY_HALF_WIDTH = 0.10
_NOISY_WAIT = 0.02
_NOISY_UNSTEADY = 0.10
_NOISY_PACE = 1.2
"""Processes of one bench do the same work: a quiet machine gives each the same pace within 5 %."""


class Bench(Record, frozen=True):
    """How to bench. Five small networks take about 40 s as it stands.

    A process takes about ``models × sessions_per_process × rounds × 1.5 × block_ms``.
    """

    threads: Annotated[int, Meta(ge=1)] = 1
    """Threads inside one run of a model."""
    batch: Annotated[int, Meta(ge=1)] = 32
    """Samples a call where throughput is measured; latency is always measured at 1."""
    processes: Annotated[int, Meta(ge=5)] = 10
    """Independent repetitions: the interval is over these."""
    sessions_per_process: Annotated[int, Meta(ge=1)] = 2
    """How often each process opens every model."""
    rounds: Annotated[int, Meta(ge=1)] = 30
    """Blocks of batch 1 per session; half as many of ``batch``."""
    block_ms: Annotated[float, Meta(gt=0)] = 5.0
    """About how long a session runs at a time; a slower call is a block of its own."""
    time_limit_s: Annotated[float, Meta(gt=0)] = 300.0
    """When a single process is given up."""
    arena: bool = True
    """As in ``SessionOptions``."""
    mmap: bool = False
    """As in ``SessionOptions``."""

    def __post_init__(self) -> None:
        require_startable(self.threads)  # here: before a recipe trains for an hour

    @property
    def session(self) -> SessionOptions:
        """The options that are timed, which are the ones that ship."""
        return SessionOptions(threads=self.threads, arena=self.arena, mmap=self.mmap)


def bench(
    models: Sequence[Path],
    settings: Bench = Bench(),
    *,
    seed: int,
    names: Sequence[str] | None = None,
    inputs: npt.NDArray[Any] | None = None,
    memory_limit_bytes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Measurement:
    """Time ONNX models on this machine, interleaved, each in several sessions and processes.

    Latency is that of ``Model.run`` on preprocessed input, warm, one call after another; a
    quantile is the geometric mean over sessions of the session's own. A speed-up is the ratio of
    two ``p50_ms``; its interval is a bootstrap over processes of the ratio within each process.

    Args:
        models: the files; the first is the reference of every speed-up.
        settings: how long, how often, with how many threads.
        seed: decides the order of everything, the random inputs and the bootstrap.
        names: what warnings call the models; by default the names of the files.
        inputs: model inputs ``(n, ...)`` to run on; by default random ones.
        memory_limit_bytes: what a process may hold in all that opens one model and runs one
            sample and one batch; None for as much as it asks for. A process that times keeps
            several sessions of every model open: it may hold the libraries once, and what the
            limit leaves beside them once for each session.
        on_progress: called with processes done and processes in all.

    Raises:
        DoesNotFitError: if a model needs more than the limit; it says how much.
        UserError: if a file is missing or no model of this kind, the inputs do not fit, or a
            process that ran a model crashed, was killed or took too long.
    """
    environment = this_environment()
    rng = np.random.default_rng(seed)
    opened: list[list[Opened]] = [[] for _ in models]
    timed: list[Timed] = []
    total = len(models) * _OPENINGS + settings.processes
    with children(models, settings, seed=seed, inputs=inputs) as run:

        def progress() -> None:
            if on_progress is not None:
                on_progress(sum(map(len, opened)) + len(timed), total)

        for _ in range(_OPENINGS):
            for index in rng.permutation(len(models)):
                opened[index].append(run.opened(index, memory_limit_bytes))
                progress()
        for process in range(settings.processes):
            timed.append(run.timed(process, memory_limit_bytes))
            progress()
    latencies = tuple(
        _latency(index, timed, opened[index], settings.batch, rng) for index in range(len(models))
    )
    return Measurement(
        environment=environment,
        session=settings.session,
        processes=settings.processes,
        sessions_per_process=settings.sessions_per_process,
        latencies=latencies,
        warnings=_warnings(
            names or [path.name for path in models], environment, settings, timed, latencies
        ),
    )


def race(
    models: Sequence[Path],
    settings: Bench,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[Interval, ...]:
    """Return how many times faster each model is than the first, and measure nothing else.

    Times as ``bench`` does, without a process per model for its memory: for searches among many.

    Args:
        models: the files; the first is the reference.
        settings: how long, how often, with how many threads.
        seed: as in ``bench``.
        on_progress: called with processes done and processes in all.

    Raises:
        UserError: as ``bench`` does.
    """
    return speedups(timed_together(models, settings, seed=seed, on_progress=on_progress), seed=seed)


def timed_together(
    models: Sequence[Path],
    settings: Bench,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Timed]:
    """Return what each process saw that timed all models, interleaved; arguments are those of ``race``.

    Raises:
        UserError: as ``bench`` does.
    """
    timed: list[Timed] = []
    with children(models, settings, seed=seed) as run:
        for process in range(settings.processes):
            timed.append(run.timed(process))
            if on_progress is not None:
                on_progress(len(timed), settings.processes)
    return timed


def speedups(timed: Sequence[Timed], *, seed: int) -> tuple[Interval, ...]:
    """Return how many times faster each model was than the first; the seed is of the bootstrap."""
    rng = np.random.default_rng(seed)
    first, *others = (_gather(timed, i, "p50_ms") for i in range(len(timed[0].models)))
    return (
        Interval(value=1.0, low=1.0, high=1.0),
        *(speedup(first, other, rng) for other in others),
    )


@dataclass(frozen=True, slots=True)
class Children:
    """The processes that a bench may ask: each call is one, which does not outlive it."""

    files: tuple[str, ...]
    settings: Bench
    conditions: Conditions

    def opened(self, index: int, memory_limit_bytes: int | None = None) -> Opened:
        """Open one model in a fresh process and run it.

        Raises:
            DoesNotFitError: if it needs more than the limit; it says how much.
            UserError: if it cannot be opened or run, or takes too long.
        """
        job = OpenJob(
            models=(self.files[index],),
            conditions=self.conditions,
            memory_limit_bytes=memory_limit_bytes,
        )
        try:
            return _run_child(job, Opened, self.settings.time_limit_s)
        except DoesNotFitError as error:
            free = msgspec.structs.replace(job, memory_limit_bytes=None)
            needed = _run_child(free, Opened, self.settings.time_limit_s)
            raise DoesNotFitError(
                f"{self.files[index]}: does not fit into {format_size(memory_limit_bytes or 0)}: "
                f"one sample needed {format_size(needed.peak_rss_bytes)}, a batch of "
                f"{self.conditions.batch} {format_size(needed.batch_peak_rss_bytes)}, of which "
                f"{format_size(needed.empty_rss_bytes)} before the model was opened; raise the "
                "limit, turn the arena off, lower the batch or take a smaller model"
            ) from error

    def timed(self, process: int, memory_limit_bytes: int | None = None) -> Timed:
        """Time several sessions of every model, interleaved, in the process of this number.

        Args:
            process: decides the order of everything.
            memory_limit_bytes: as in ``opened``, for each session.

        Raises:
            DoesNotFitError: if the sessions together need more than each was allowed alone.
            UserError: if a model cannot be opened or run, or the process takes too long.
        """
        job = TimeJob(
            models=self.files,
            conditions=self.conditions,
            process=process,
            sessions=self.settings.sessions_per_process,
            rounds=self.settings.rounds,
            block_ms=self.settings.block_ms,
            memory_limit_bytes=memory_limit_bytes,
        )
        try:
            return _run_child(job, Timed, self.settings.time_limit_s)
        except DoesNotFitError as error:
            sessions = len(self.files) * job.sessions
            raise DoesNotFitError(
                f"{_at(job)}: does not fit into {format_size(memory_limit_bytes or 0)} while it is "
                f"timed, though it did when it was opened: the {sessions} sessions of the bench "
                "together asked for more than that much each; does it take more with every run? "
                "Raise the limit, or turn the arena off"
            ) from error


@contextlib.contextmanager
def children(
    models: Sequence[Path],
    settings: Bench,
    *,
    seed: int,
    inputs: npt.NDArray[Any] | None = None,
) -> Iterator[Children]:
    """Make ready what the processes of a bench share; arguments are those of ``bench``.

    Raises:
        UserError: if there are no models, or the system is none that can be measured on.
    """
    if not models:
        raise UserError("bench: needs one model or more, got none")
    if os.name != "posix":
        raise UserError(f"bench: needs Linux or macOS to read a process's memory, got {os.name}")
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        conditions = Conditions(
            session=settings.session,
            batch=settings.batch,
            seed=seed,
            inputs=_save(inputs, Path(scratch, "inputs.npy")),
            trace=str(Path(scratch, "trace")),
        )
        yield Children(tuple(str(path.absolute()) for path in models), settings, conditions)


def log_p50(timed: Sequence[Timed], index: int) -> npt.NDArray[np.float64]:
    """Return the logarithm of a model's median time in ms, one value a process, ``(n,)``."""
    mean: npt.NDArray[np.float64] = np.log(_gather(timed, index, "p50_ms")).mean(axis=1)
    return mean


def speedup(reference: Milliseconds, candidate: Milliseconds, rng: np.random.Generator) -> Interval:
    """Return how many times faster a candidate is, from medians ``(processes, sessions)`` of both.

    The estimate is the ratio of geometric means. The interval is a cluster bootstrap over
    processes of the logarithm of the ratio within each, so that it holds the spread between
    sessions and between processes; ``SYSTEMATIC`` is added to both ends.
    """
    ratios = np.log(reference).mean(axis=1) - np.log(candidate).mean(axis=1)
    mean = bootstrap_mean(ratios, rng)
    return Interval(
        value=math.exp(mean.value),
        low=math.exp(mean.low) / (1 + SYSTEMATIC),
        high=math.exp(mean.high) * (1 + SYSTEMATIC),
    )


def _latency(
    index: int,
    timed: Sequence[Timed],
    opened: Sequence[Opened],
    batch: int,
    rng: np.random.Generator,
) -> Latency:
    p50 = _gather(timed, index, "p50_ms")
    across = bootstrap_mean(log_p50(timed, index), rng)
    return Latency(
        p50_ms=Interval(
            value=math.exp(across.value), low=math.exp(across.low), high=math.exp(across.high)
        ),
        p90_ms=_geometric_mean(_gather(timed, index, "p90_ms")),
        p99_ms=_geometric_mean(_gather(timed, index, "p99_ms")),
        speedup=(
            speedup(_gather(timed, 0, "p50_ms"), p50, rng)
            if index
            else Interval(value=1.0, low=1.0, high=1.0)
        ),
        throughput_per_s=1000 * batch / _geometric_mean(_gather(timed, index, "batch_p50_ms")),
        batch=batch,
        load_ms=float(np.median([seen.load_ms for seen in opened])),
        peak_rss_bytes=int(np.median([seen.peak_rss_bytes for seen in opened])),
        empty_rss_bytes=int(np.median([seen.empty_rss_bytes for seen in opened])),
    )


def _gather(timed: Sequence[Timed], index: int, name: str) -> Milliseconds:
    """Return one number of every session of a model, ``(processes, sessions)``."""
    return np.array([[getattr(s, name) for s in process.models[index]] for process in timed])


def _geometric_mean(values: Milliseconds) -> float:
    return math.exp(float(np.log(values).mean()))


def _warnings(
    names: Sequence[str],
    environment: Environment,
    settings: Bench,
    timed: Sequence[Timed],
    latencies: Sequence[Latency],
) -> tuple[str, ...]:
    """Say what made the machine hard to measure on, and what is known badly for it."""
    said = noise(environment, settings, timed)
    for name, latency in zip(names, latencies, strict=True):
        half_width = (latency.speedup.high - latency.speedup.low) / 2 / latency.speedup.value
        if half_width > _NOISY_HALF_WIDTH:
            said.append(f"the speed-up of {name} is known to ±{half_width:.0%} only")
    return tuple(said)


def noise(environment: Environment, settings: Bench, timed: Sequence[Timed]) -> list[str]:
    """Say what made the machine hard to measure on."""
    said = []
    load, cores = environment.load_average, environment.cores
    if load is not None and load > cores:
        said.append(f"the load average was {load:.1f} on {cores} cores when the bench began")
    waited = float(np.mean([process.waited for process in timed]))
    # With several threads the first one may rest while the others work.
    if settings.threads == 1 and waited > _NOISY_WAIT:
        said.append(f"the bench waited {waited:.0%} of its time for a processor that others held")
    steady = [session.steady for process in timed for model in process.models for session in model]
    if steady.count(False) > _NOISY_UNSTEADY * len(steady):
        said.append(
            f"{steady.count(False)} of {len(steady)} sessions never settled "
            f"to within {STEADY_WITHIN:.0%} while warming up"
        )
    paces = [_pace_ms(process) for process in timed]
    if max(paces) > _NOISY_PACE * min(paces):
        said.append(
            f"this machine changed its pace: the models took {max(paces) / min(paces):.1f} times as long "
            "in one process as in another, as where others share its cores; speed-ups may be others "
            "when it is quiet"
        )
    if environment.governor not in {None, "performance"}:
        said.append(f"the CPU governor is {environment.governor!r}, not 'performance'")
    return said


def _pace_ms(process: Timed) -> float:
    """Return the geometric mean of a process's medians, over all models and their sessions."""
    return _geometric_mean(np.array([s.p50_ms for model in process.models for s in model]))


def _save(inputs: npt.NDArray[Any] | None, path: Path) -> str | None:
    if inputs is None:
        return None
    np.save(path, inputs, allow_pickle=False)
    return str(path)


_Seen = TypeVar("_Seen", Opened, Timed)


def _run_child(job: OpenJob | TimeJob, kind: type[_Seen], time_limit_s: float) -> _Seen:
    """Do a job in a process of its own, which does not outlive this call, whatever ends it."""
    Path(job.conditions.trace).unlink(missing_ok=True)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "deploy.bench_child"],
            # `-m` looks here first: never in the user's folder, which may hold a `deploy` too.
            cwd=Path(__file__).resolve().parents[1],
            input=msgspec.json.encode(job),
            capture_output=True,
            timeout=time_limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{_at(job)}: the process that ran it took more than the time limit of "
            f"{time_limit_s:g} s; raise the limit or bench fewer rounds"
        ) from None
    if child.returncode != 0:
        raise UserError(f"{_at(job)}: the process that ran it {_end_of(child)}")
    outcome: Outcome = msgspec.json.decode(child.stdout, type=Outcome)
    if isinstance(outcome, TooLarge):
        raise DoesNotFitError(f"{_at(job)}: does not fit")
    if isinstance(outcome, Refused):
        raise UserError(outcome.reason)
    if not isinstance(outcome, kind):
        raise TypeError(f"asked for {kind}, got {outcome}")
    return outcome


def _at(job: OpenJob | TimeJob) -> str:
    """Return the model that a child was at when it ended, or all if it had not come to any."""
    trace = Path(job.conditions.trace)
    index = trace.read_bytes() if trace.exists() else b""
    return job.models[int.from_bytes(index, "little")] if index else " ".join(job.models)


def _end_of(child: subprocess.CompletedProcess[bytes]) -> str:
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        return f"was killed by {name}" + ("; is memory short?" if name == "SIGKILL" else "")
    lines = child.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return f"failed with exit code {child.returncode}: {lines[-1][:300]}"
