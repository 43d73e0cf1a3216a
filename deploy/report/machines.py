"""What other machines measured, brought home beside a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploy.errors import UserError
from deploy.record import Environment, Latency, MachineBench, read_capped
from deploy.report.quantities import (
    count,
    duration,
    duration_bounds,
    file_size,
    times,
    times_bounds,
)
from deploy.report.results import Machine, MachineTimes, Results

_LARGEST_BENCH = 1 << 24
COLUMNS = ("Median time", "Speed-up", "p99", "Samples/s", "Load", "Memory")


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One line of the table of other machines: texts in the order of ``COLUMNS``."""

    machine: str
    variant: str
    cells: tuple[tuple[str, str], ...]
    """Text, and what stands small beside it."""


def read_bench(path: Path) -> MachineBench:
    """Read what ``lightship bench --json`` printed.

    Raises:
        UserError: if the file is missing, or holds something else.
    """
    try:
        bench = msgspec.json.decode(read_capped(path, _LARGEST_BENCH), type=MachineBench)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give what lightship bench --json printed"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path}: is not what lightship bench --json prints ({error}); measure again"
        ) from error
    if len(bench.models) != len(bench.measurement.latencies):
        raise UserError(
            f"{path}: names {len(bench.models)} models but has "
            f"{len(bench.measurement.latencies)} latencies; measure again"
        )
    return bench


def add_machine(results: Results, name: str, bench: MachineBench) -> Results:
    """Return results with what another machine measured; one of the same name gives way.

    Models are known by the sha256 of their bytes, whatever file or bundle they came in. Speed-ups
    are kept only where the machine timed the run's baseline first: they mean nothing beside others.

    Raises:
        UserError: if a model is none of the run's variants.
    """
    # Of variants with equal bytes, the first gives its name.
    variants = {variant.sha256: variant.name for variant in reversed(results.variants)}
    strange = [model.path for model in bench.models if model.sha256 not in variants]
    if strange:
        raise UserError(
            f"{name}: {', '.join(strange)} has not the bytes of any variant of this run; "
            "measure bundles or models of this very run"
        )
    comparable = bench.models[0].sha256 == results.baseline.sha256
    seen = bench.measurement
    machine = Machine(
        name=name,
        environment=seen.environment,
        threads=seen.session.threads,
        processes=seen.processes,
        sessions_per_process=seen.sessions_per_process,
        times=tuple(
            _times(variants[model.sha256], latency, comparable=comparable)
            for model, latency in zip(bench.models, seen.latencies, strict=True)
        ),
        warnings=seen.warnings,
    )
    others = tuple(known for known in results.machines if known.name != name)
    return msgspec.structs.replace(results, machines=(*others, machine))


def _times(variant: str, seen: Latency, *, comparable: bool) -> MachineTimes:
    return MachineTimes(
        variant=variant,
        p50_ms=seen.p50_ms.value,
        p50_low_ms=seen.p50_ms.low,
        p50_high_ms=seen.p50_ms.high,
        p90_ms=seen.p90_ms,
        p99_ms=seen.p99_ms,
        speedup=seen.speedup.value if comparable else None,
        speedup_low=seen.speedup.low if comparable else None,
        speedup_high=seen.speedup.high if comparable else None,
        throughput_per_s=seen.throughput_per_s,
        batch=seen.batch,
        load_ms=seen.load_ms,
        peak_rss_bytes=seen.peak_rss_bytes,
    )


def machine_rows(results: Results) -> Sequence[MachineRow]:
    """Return a line for every variant that another machine timed."""
    return [
        MachineRow(machine.name, seen.variant, _cells(seen))
        for machine in results.machines
        for seen in machine.times
    ]


def machine_words(machine: Machine) -> str:
    """Say what a machine is, and how it measured."""
    here: Environment = machine.environment
    versions = ", ".join(f"{name} {text}" for name, text in sorted(here.versions.items()))
    threads = f"{machine.threads} thread" + ("" if machine.threads == 1 else "s")
    return (
        f"{here.cpu}, {here.cores} cores, {here.architecture}, {file_size(here.memory_bytes)}; "
        f"{here.os}, Python {here.python}, {versions}; {threads}, {machine.processes} processes"
    )


def _cells(seen: MachineTimes) -> tuple[tuple[str, str], ...]:
    speed = ("", "")
    if seen.speedup is not None and seen.speedup_low is not None and seen.speedup_high is not None:
        low, high = seen.speedup_low, seen.speedup_high
        # The baseline against itself has no interval to show.
        speed = (times(seen.speedup), times_bounds(seen.speedup, low, high) if low < high else "")
    return (
        (duration(seen.p50_ms), duration_bounds(seen.p50_ms, seen.p50_low_ms, seen.p50_high_ms)),
        speed,
        (duration(seen.p99_ms), ""),
        (count(seen.throughput_per_s), f"in batches of {seen.batch}"),
        (duration(seen.load_ms), ""),
        (file_size(seen.peak_rss_bytes), ""),
    )
