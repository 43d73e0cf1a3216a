"""How fast models are beside each other, with the machine's noise in the interval.

Timing one model and then the other lies, and so does one session per model: the same file opened
eight times in one process may give medians that differ by 40 %. So every process opens every model
several times, runs small blocks of all sessions in random order, and is itself one of several.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
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
)
from deploy.errors import UserError
from deploy.intervals import bootstrap_mean
from deploy.machine import this_environment
from deploy.record import Environment, Interval, Latency, Measurement, Record, SessionOptions
from deploy.session import require_startable

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

    def __post_init__(self) -> None:
        require_startable(self.threads)  # here: before a recipe trains for an hour

    @property
    def session(self) -> SessionOptions:
        """The options that are timed, which are the ones that ship."""
        return SessionOptions(threads=self.threads)


def bench(
    models: Sequence[Path],
    settings: Bench = Bench(),
    *,
    seed: int,
    names: Sequence[str] | None = None,
    inputs: npt.NDArray[Any] | None = None,
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
        on_progress: called with processes done and processes in all.

    Raises:
        UserError: if a file is missing or no model of this kind, the inputs do not fit, or a
            process that ran a model crashed, was killed or took too long.
    """
    if not models:
        raise UserError("bench: needs one model or more, got none")
    if os.name != "posix":
        raise UserError(f"bench: needs Linux or macOS to read a process's memory, got {os.name}")
    environment = this_environment()
    rng = np.random.default_rng(seed)
    files = tuple(str(path.absolute()) for path in models)
    opened: list[list[Opened]] = [[] for _ in files]
    timed: list[Timed] = []
    total = len(files) * _OPENINGS + settings.processes
    with tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch:
        conditions = Conditions(
            session=settings.session,
            batch=settings.batch,
            seed=seed,
            inputs=_save(inputs, Path(scratch, "inputs.npy")),
            trace=str(Path(scratch, "trace")),
        )

        def progress() -> None:
            if on_progress is not None:
                on_progress(sum(map(len, opened)) + len(timed), total)

        for _ in range(_OPENINGS):
            for index in rng.permutation(len(files)):
                job = OpenJob(models=(files[index],), conditions=conditions)
                opened[index].append(_run_child(job, Opened, settings.time_limit_s))
                progress()
        for process in range(settings.processes):
            timing = TimeJob(
                models=files,
                conditions=conditions,
                process=process,
                sessions=settings.sessions_per_process,
                rounds=settings.rounds,
                block_ms=settings.block_ms,
            )
            timed.append(_run_child(timing, Timed, settings.time_limit_s))
            progress()
    latencies = tuple(
        _latency(index, timed, opened[index], settings.batch, rng) for index in range(len(files))
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
    across = bootstrap_mean(np.log(p50).mean(axis=1), rng)
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
    if environment.governor not in {None, "performance"}:
        said.append(f"the CPU governor is {environment.governor!r}, not 'performance'")
    for name, latency in zip(names, latencies, strict=True):
        half_width = (latency.speedup.high - latency.speedup.low) / 2 / latency.speedup.value
        if half_width > _NOISY_HALF_WIDTH:
            said.append(f"the speed-up of {name} is known to ±{half_width:.0%} only")
    return tuple(said)


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
