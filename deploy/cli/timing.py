"""``lightship bench`` and ``lightship audit``: how long a model takes, and what runs in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.command import ended_by_sigterm, print_json, timing_bar
from deploy.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    arena_option,
    json_option,
    memory_limit_option,
    public_key_option,
    require_harmless_models,
    require_place,
    signatures_of,
    size_asked,
    threads_option,
    trust_model_option,
)

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.record import MachineBench, Measurement


@click.command("bench")
@click.argument("models", type=FILE_OR_FOLDER, nargs=-1, required=True)
@threads_option
@click.option("--batch", type=click.IntRange(min=1), help="Samples a call for the throughput.")
@click.option("--processes", type=click.IntRange(min=5), help="Processes to spread sessions over.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@public_key_option
@trust_model_option
@memory_limit_option
@arena_option
@click.option("--mmap", is_flag=True, help="Map models in ORT format instead of reading them.")
@click.option("--on", "host", metavar="USER@HOST", help="Measure there, over the system's ssh.")
@click.option(
    "--remote-command",
    default="lightship",
    show_default=True,
    help="How lightship is called there: a line of its shell.",
)
@click.option("--ssh-config", type=FILE, help="A configuration file for ssh.")
@click.option("--out", "-o", type=FILE, help="Write the JSON to a file as well.")
@json_option
def bench_command(
    models: tuple[Path, ...],
    host: str | None,
    remote_command: str,
    ssh_config: Path | None,
    out: Path | None,
    public_key: Path | None,
    trust_model: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Time MODELS, ONNX or .tflite files or bundles, against the first, in many sessions and processes.

    The JSON names the bytes that were timed: lightship report --add shows it beside a run.

    \b
    lightship bench baseline.onnx int8.onnx int8.tflite
    lightship bench model.lship --json > pi4.json
    lightship bench --on pi@pi4.local model.lship --out pi4.json
    """
    from deploy.bundle.container import write_whole

    require_place("--out", out, *models, public_key, *signatures_of(*models))
    if host is None:
        seen = _bench_here(models, public_key=public_key, trust_model=trust_model, **asked)
    else:
        from deploy.remote import Remote, bench_on

        there = Remote(host=host, command=remote_command, ssh_config=ssh_config)
        seen = bench_on(
            there,
            models,
            {**asked, "trust_model": trust_model},
            public_key=public_key,
            on_line=lambda line: click.echo(f"{host}: {line}", err=True),
        )
    if out is not None:
        import msgspec

        write_whole(out, msgspec.json.format(msgspec.json.encode(seen)) + b"\n")
    if as_json:
        print_json(seen)
        return
    for line in _bench_table(models, seen.measurement):
        click.echo(line)
    for warning in seen.measurement.warnings:
        click.echo(f"warning: {warning}", err=True)


def _bench_here(
    models: tuple[Path, ...],
    *,
    seed: int,
    memory_limit: str | None,
    public_key: Path | None,
    trust_model: bool,
    **asked: Any,
) -> MachineBench:
    import msgspec

    from deploy.bench import Bench, bench
    from deploy.bundle.opened import is_bundle
    from deploy.bundle.unpack import to_bench
    from deploy.record import MachineBench

    settings = msgspec.convert({k: v for k, v in asked.items() if v is not None}, Bench)
    limit = size_asked("--memory-limit", memory_limit)
    loose = [model for model in models if not is_bundle(model, public_key=public_key)]
    require_harmless_models(trust_model, settings.session, *loose)
    with (
        ended_by_sigterm(),
        to_bench(models, settings.session, public_key=public_key) as (files, named),
        timing_bar() as advance,
    ):
        measurement = bench(
            files,
            settings,
            seed=seed,
            names=[str(model) for model in models],
            memory_limit_bytes=limit,
            on_progress=advance,
        )
    return MachineBench(models=named, measurement=measurement)


def _bench_table(models: tuple[Path, ...], measurement: Measurement) -> Iterator[str]:
    yield (
        f"{'p50 ms':>8}{'p90 ms':>9}{'p99 ms':>9}{'speed-up':>9}{'':15}"
        f"{'samples/s':>11}{'load ms':>9}{'peak MB':>9}"
    )
    for model, seen in zip(models, measurement.latencies, strict=True):
        ratio = seen.speedup
        interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        yield str(model)  # on a line of its own: a path and the numbers would not fit one
        yield (
            f"{_ms(seen.p50_ms.value):>8}{_ms(seen.p90_ms):>9}{_ms(seen.p99_ms):>9}"
            f"{ratio.value:>8.2f}× {interval:14}{seen.throughput_per_s:>11,.0f}"
            f"{seen.load_ms:>9.1f}{seen.peak_rss_bytes / 1e6:>9.1f}"
        )
    empty = max(seen.empty_rss_bytes for seen in measurement.latencies)
    if empty:
        yield f"peak MB is of a whole process: {empty / 1e6:.1f} before it opens a model"


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 100 else f"{value:.1f}"


@click.command("audit")
@click.argument("model", type=FILE)
@click.option("--against", type=FILE, help="A second model to time beside it: its float32 form.")
@trust_model_option
@threads_option
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@json_option
def audit_command(
    model: Path,
    against: Path | None,
    trust_model: bool,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    """Say which layers of MODEL run in int8, why others do not, and where the time goes.

    With --against the last line says how much faster MODEL is, with a 95 % interval, and why not more.

    \b
    lightship audit pruned-int8.onnx --against pruned.onnx
    """
    from deploy.audit import audit, table
    from deploy.record import SessionOptions

    options = SessionOptions(threads=threads)
    require_harmless_models(trust_model, options, model, against)
    with timing_bar() if against else contextlib.nullcontext() as advance:
        found = audit(model, options, against=against, seed=seed, on_progress=advance)
    if as_json:
        print_json(found)
        return
    for line in table(found):
        click.echo(line)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
