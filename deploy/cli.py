"""The commands that need no TensorFlow: from evaluate to doctor, on files and bundles."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.evaluate import Classes
    from deploy.record import Interval, MachineBench, Measurement

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE_OR_FOLDER = click.Path(path_type=Path)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout; everything else goes to stderr."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads a session."
)
memory_limit_option = click.option(
    "--memory-limit", metavar="SIZE", help="What a process may hold in all, such as 64MB (Linux)."
)
arena_option = click.option(
    "--arena/--no-arena", default=None, help="Keep a run's memory for the next.  [default: arena]"
)


class _OneLine(click.ClickException):
    """A user's mistake, printed as one line."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", err=True)


def _in_one_line(error: click.UsageError) -> _OneLine:
    """Return click's own complaint, which it would print in several lines."""
    command = error.ctx.command_path if error.ctx else "lightship"
    return _OneLine(f"{error.format_message().rstrip('.')}; see {command} --help")


class Commands(click.Group):
    """A group whose commands end a user's mistake in one line and exit code 2."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """Read the words before the command; without any, click prints the help."""
        if not args:
            return super().make_context(info_name, args, parent, **extra)
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            raise _in_one_line(error) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; where there is none, name the one that was meant."""
        close = difflib.get_close_matches(args[0], self.commands, n=1)
        if close and args[0] not in self.commands:
            ctx.fail(f"no command {args[0]!r}, did you mean {close[0]}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; let a bug keep its traceback."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise _OneLine(str(error)) from error
        except click.UsageError as error:
            raise _in_one_line(error) from error
        except KeyboardInterrupt:
            click.echo("stopped; what was finished is kept", err=True)
            ctx.exit(130)  # 128 + SIGINT, as a shell says it

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which they were added: that of the work."""
        return list(self.commands)


def print_json(value: object) -> None:
    """Print a record as one JSON document on stdout."""
    import msgspec

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


@click.group(cls=Commands)
@click.version_option(package_name="lightship")
def cli() -> None:
    """Measure and ship models with numpy and ONNX Runtime alone."""


@cli.command("evaluate")
@click.argument("model", type=FILE)
@click.option("--data", type=FILE, required=True, help=".npz with x and y (RUN/test.npz is one).")
@click.option("--against", type=FILE, help="A second model to compare with, sample by sample.")
@threads_option
@json_option
def evaluate_command(
    model: Path, data: Path, against: Path | None, threads: int, as_json: bool
) -> None:
    """Measure the accuracy of MODEL in the session that ships.

    \b
    lightship evaluate runs/demo/variants/int8/model.onnx \\
        --data runs/demo/test.npz --against runs/demo/variants/baseline/model.onnx
    """
    from deploy.evalset import EvalSet
    from deploy.evaluate import class_scores, compare, evaluate, predict_classes, verdict
    from deploy.record import SessionOptions
    from deploy.session import open_model

    samples = EvalSet.load(data)
    options = SessionOptions(threads=threads)
    opened = open_model(model, options)
    scores = class_scores(opened, samples.x)
    classes = scores.shape[1]
    _require_known_classes(samples.y, classes, data=data, model=model)
    predicted = scores.argmax(axis=1)
    evaluation = evaluate(predicted, samples.y, classes=classes)
    comparison = None
    if against is not None:
        reference = predict_classes(open_model(against, options), samples.x)
        comparison = compare(predicted, reference, samples.y, classes=classes)
    if as_json:
        print_json({"evaluation": evaluation, "comparison": comparison})
        return
    click.echo(f"accuracy  {_percent(evaluation.accuracy)} on {evaluation.samples:,} samples")
    if comparison is not None:
        click.echo(
            f"against   {against}: {verdict(comparison)}, "
            f"McNemar p = {comparison.mcnemar_p:.3g}, same answer on {comparison.agreement:.2%}"
        )


@cli.command("bench")
@click.argument("models", type=FILE_OR_FOLDER, nargs=-1, required=True)
@threads_option
@click.option("--batch", type=click.IntRange(min=1), help="Samples a call for the throughput.")
@click.option("--processes", type=click.IntRange(min=5), help="Processes to spread sessions over.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
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
    as_json: bool,
    **asked: Any,
) -> None:
    """Time MODELS, ONNX files or bundles, against the first, in many sessions and processes.

    The JSON names the bytes that were timed: lightship report --add shows it beside a run.

    \b
    lightship bench baseline.onnx int8.onnx
    lightship bench model.lship --json > pi4.json
    lightship bench --on pi@pi4.local model.lship --out pi4.json
    """
    from deploy.check.formats import write_whole

    if host is None:
        seen = _bench_here(models, **asked)
    else:
        from deploy.remote import Remote, bench_on

        there = Remote(host=host, command=remote_command, ssh_config=ssh_config)
        seen = bench_on(
            there, models, asked, on_line=lambda line: click.echo(f"{host}: {line}", err=True)
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
    models: tuple[Path, ...], *, seed: int, memory_limit: str | None, **asked: Any
) -> MachineBench:
    import tempfile

    import msgspec

    from deploy.bench import Bench, bench
    from deploy.bundle.unpack import to_bench
    from deploy.record import MachineBench

    settings = msgspec.convert({k: v for k, v in asked.items() if v is not None}, Bench)
    limit = _size("--memory-limit", memory_limit)
    with (
        _ended_by_sigterm(),
        tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch,
        click.progressbar(length=100, label="timing", file=sys.stderr) as bar,
    ):

        def advance(done: int, total: int) -> None:
            bar.update(int(100 * done / total) - bar.pos)

        files, named = to_bench(models, Path(scratch), settings.session)
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


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no process or file is left behind."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say how a signal ends it
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@cli.command("check")
@click.argument("bundle", type=FILE_OR_FOLDER)
@click.option("--max-drop-points", type=float, help="Accuracy it may lose to the baseline.")
@click.option("--min-accuracy", type=float, help="Fraction of samples that has to be right.")
@click.option("--max-size", metavar="SIZE", help="Of the file or folder, such as 100kB.")
@click.option("--max-p50-ratio", type=float, help="Median time over that of the baseline.")
@click.option("--max-p50-ms", type=float, help="Median time of one sample on this machine.")
@click.option("--max-peak-memory", metavar="SIZE", help="Resident, of a new process.")
@click.option("--require-int8", is_flag=True, help="A layer has to run as an int8 kernel.")
@click.option("--baseline", type=FILE_OR_FOLDER, help="The bundle or ONNX file to compare with.")
@click.option("--data", type=FILE, help=".npz with x and y.  [default: what its run measured]")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads.  [default: as it was measured]"
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds until it is given up to tell a difference from noise.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--junit", type=FILE, help="Write JUnit XML.")
@click.option("--markdown", type=FILE, help="Write Markdown (also to $GITHUB_STEP_SUMMARY).")
@json_option
def check_command(
    bundle: Path,
    max_size: str | None,
    max_peak_memory: str | None,
    baseline: Path | None,
    data: Path | None,
    threads: int | None,
    time_limit: float,
    seed: int,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Hold BUNDLE (or an ONNX file) to limits: the gate of a build.

    Exit codes: 0 all limits kept, 3 one is not, 4 a difference inside the noise could not be told
    within the time limit or with these samples, 2 a mistake of yours, 1 a bug of ours.

    \b
    lightship check model.lship --max-size 500kB --max-drop-points 0.5
    lightship check model.lship --baseline base.lship --data test.npz \\
        --max-drop-points 0.5 --max-p50-ratio 0.9 --junit check.xml
    """
    import os

    import msgspec

    from deploy.check import formats
    from deploy.check.rules import Limits
    from deploy.check.run import check

    sizes = {
        "max_size_bytes": _size("--max-size", max_size),
        "max_peak_memory_bytes": _size("--max-peak-memory", max_peak_memory),
    }
    try:
        limits = msgspec.convert({**asked, **sizes}, Limits)
    except msgspec.ValidationError as error:
        raise UserError(f"check: {error}") from error
    with _ended_by_sigterm():
        checked = check(
            bundle,
            limits,
            baseline=baseline,
            data=data,
            threads=threads,
            time_limit_s=time_limit,
            seed=seed,
            on_progress=lambda what: click.echo(what, err=True),
        )
    if junit is not None:
        formats.write_whole(junit, formats.to_junit(checked))
    if markdown is not None:
        formats.write_whole(markdown, formats.to_markdown(checked).encode())
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(formats.to_markdown(checked) + "\n")
        except OSError as error:
            raise UserError(
                f"GITHUB_STEP_SUMMARY: {summary} cannot be written ({error.strerror})"
            ) from error
    if as_json:
        print_json(checked)
    else:
        for line in formats.to_lines(checked):
            click.echo(line)
    sys.exit({"passed": 0, "failed": 3, "undecided": 4}[checked.outcome])


def _size(option: str, text: str | None) -> int | None:
    from deploy.sizes import parse_size

    return None if text is None else parse_size(text, what=option)


@cli.command("audit")
@click.argument("model", type=FILE)
@click.option("--against", type=FILE, help="A second model to time beside it: its float32 form.")
@threads_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
@json_option
def audit_command(
    model: Path, against: Path | None, threads: int, seed: int, as_json: bool
) -> None:
    """Say which layers of MODEL run in int8, why others do not, and where the time goes.

    \b
    lightship audit pruned-int8.onnx --against pruned.onnx
    """
    from deploy.audit import audit, table
    from deploy.record import SessionOptions

    found = audit(model, SessionOptions(threads=threads), against=against, seed=seed)
    if as_json:
        print_json(found)
        return
    for line in table(found):
        click.echo(line)


@cli.command("report")
@click.argument("run", type=FOLDER)
@click.option(
    "--add",
    "added",
    type=FILE,
    multiple=True,
    help="What bench --json printed elsewhere; the file's name becomes the machine's.",
)
@json_option
def report_command(run: Path, added: tuple[Path, ...], as_json: bool) -> None:
    """Write the report of a finished RUN again, from its results.json.

    \b
    lightship report runs/demo
    lightship report runs/demo --add pi4.json
    """
    from deploy.report import write_report
    from deploy.report.machines import add_machine, read_bench
    from deploy.report.results import read_results

    results = read_results(run / "results.json")
    for path in added:
        results = add_machine(results, path.stem, read_bench(path))
    write_report(results, run)
    if as_json:
        print_json(results)
    else:
        click.echo(run / "report.html")


@cli.command("bundle")
@click.argument("source", type=FILE_OR_FOLDER)
@click.option("--variant", help="Which variant of a run.  [default: the verdict's choice]")
@click.option("--data", type=FILE, help="For a single model: .npz with x and y to test it with.")
@click.option(
    "--out",
    "-o",
    type=FILE_OR_FOLDER,
    default="model.lship",
    show_default=True,
    help="A .lship file, or else a folder.",
)
@click.option("--name", help="What the bundle is called.  [default: run and variant]")
@click.option("--model-version", default="1.0.0", show_default=True, help="Its semantic version.")
@click.option(
    "--licence", default="not stated", show_default=True, help="The licence of the model."
)
@json_option
def bundle_command(
    source: Path,
    variant: str | None,
    data: Path | None,
    out: Path,
    name: str | None,
    model_version: str,
    licence: str,
    as_json: bool,
) -> None:
    """Pack what a device needs of SOURCE, a finished run or a single ONNX model, into one file.

    \b
    lightship bundle runs/demo -o model.lship
    lightship bundle runs/demo --variant int8 -o int8.lship
    lightship bundle pruned.onnx --data test.npz -o pruned.lship
    """
    from deploy.bundle.make import Label, bundle_model, bundle_run

    label = Label(name=name, version=model_version, licence=licence)
    if source.is_dir():
        if data is not None:
            raise UserError(f"--data: {source} is a run and has its own test samples; leave it out")
        bundle = bundle_run(source, out, variant=variant, label=label)
    elif data is None or variant is not None:
        raise UserError(
            f"{source}: a single model needs --data and no --variant; give the run's folder for "
            "what was measured in a run"
        )
    else:
        bundle = bundle_model(source, data, out, label=label)
    if as_json:
        print_json({"path": str(out), "bundle": bundle.id, "manifest": bundle.manifest})
        return
    files = [out] if out.is_file() else sorted(out.iterdir())
    size_bytes = sum(file.stat().st_size for file in files)
    said = bundle.manifest
    click.echo(f"{out}  {said.name} {said.version}, {size_bytes:,} bytes")


@cli.command("selftest")
@click.argument("bundle", type=FILE_OR_FOLDER)
@threads_option
@memory_limit_option
@json_option
def selftest_command(bundle: Path, threads: int, memory_limit: str | None, as_json: bool) -> None:
    """Say whether BUNDLE is whole and this machine answers as the one that measured it.

    Exit codes: 0 it passes, 1 it fails, 2 there is nothing to test, or this ONNX Runtime is too old.

    \b
    lightship selftest model.lship
    """
    from deploy.bundle.footprint import fitting
    from deploy.bundle.selftest import selftest

    with fitting(bundle, _size("--memory-limit", memory_limit), threads=threads):
        found = selftest(bundle, threads=threads)
    if as_json:
        print_json(found)
    else:
        click.echo(found.sentence)
    if not found.passed:
        click.get_current_context().exit(1)


@cli.command("predict")
@click.argument("bundle", type=FILE_OR_FOLDER)
@click.argument("samples", type=FILE_OR_FOLDER)
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes a sample."
)
@threads_option
@memory_limit_option
@json_option
def predict_command(
    bundle: Path,
    samples: Path,
    top: int,
    threads: int,
    memory_limit: str | None,
    as_json: bool,
) -> None:
    """Name the class of SAMPLES, an image, a folder of images or an .npy array, with BUNDLE.

    \b
    lightship predict model.lship digit.png
    lightship predict model.lship digits/ --top 3 --json
    """
    from deploy import load
    from deploy.bundle.footprint import fitting
    from deploy.bundle.samples import read_samples

    with fitting(bundle, _size("--memory-limit", memory_limit), threads=threads):
        runtime = load(bundle, threads=threads, warm_up=False)
        given = read_samples(samples, runtime.metadata.raw)
        answers = runtime.predict(given.x)
    _ = answers.classes  # refuses NaN
    rows = [
        (name, [(runtime.labels[i], float(row[i])) for i in (-row).argsort(kind="stable")[:top]])
        for name, row in zip(given.names, answers.probabilities, strict=True)
    ]
    if as_json:
        print_json(
            [
                {
                    "sample": name,
                    "label": best[0][0],
                    "top": [{"label": label, "probability": p} for label, p in best],
                }
                for name, best in rows
            ]
        )
        return
    width = max(len(name) for name, _ in rows)
    for name, best in rows:
        click.echo(f"{name:{width}}  " + "  ".join(f"{label} {p:.1%}" for label, p in best))


@cli.command("serve")
@click.argument("bundles", type=FILE_OR_FOLDER, nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 is everyone.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads a run.  [default: as bundled]")
@click.option(
    "--max-batch",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Samples of one run that may come from several requests.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Requests of a model that may wait; the next is refused.",
)
@click.option(
    "--deadline-ms",
    type=click.FloatRange(min=0, min_open=True),
    default=1000.0,
    show_default=True,
    help="Longest wait in the queue.",
)
@click.option(
    "--max-body-mb",
    type=click.FloatRange(min=0, min_open=True),
    default=16.0,
    show_default=True,
    help="Largest request, in millions of bytes.",
)
@click.option(
    "--timeout-s",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Longest time for a request to arrive.",
)
@click.option(
    "--api-key-file", type=FILE, help="One API key a line; else $LIGHTSHIP_API_KEY, else none."
)
@click.option("--tls-cert", type=FILE, help="PEM certificate, with --tls-key.")
@click.option("--tls-key", type=FILE, help="Its PEM key, without a password.")
@json_option
def serve_command(bundles: tuple[Path, ...], as_json: bool, **asked: Any) -> None:
    """Answer for BUNDLES over HTTP, in the Open Inference Protocol v2, until SIGTERM or SIGINT.

    Needs the extra 'serve'. One line, with --json one document, says when it is ready and where.

    \b
    lightship serve runs/demo/best.lship
    lightship serve digits.lship clothes.lship --host 0.0.0.0 --api-key-file keys.txt
    """
    from deploy.errors import needs_extra

    with needs_extra("serve"):
        from deploy.serve.command import serve

    def ready(said: dict[str, object], lines: list[str]) -> None:
        if as_json:
            print_json(said)
            sys.stdout.flush()
            return
        for line in lines:
            click.echo(line)

    def warn(line: str) -> None:
        click.echo(f"warning: {line}", err=True)

    serve(bundles, **asked, on_ready=ready, warn=warn)


@cli.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Say what this machine is good for: versions, instruction sets, schemes, what is missing."""
    from deploy.doctor import examine

    found = examine()
    if as_json:
        print_json(found)
        return
    for line in found.lines():
        click.echo(line)


def _require_known_classes(y: Classes, classes: int, *, data: Path, model: Path) -> None:
    """Refuse a label that the model has no score for.

    Raises:
        UserError: if ``y`` holds a class that is not in ``range(classes)``.
    """
    largest = int(y.max())
    if largest >= classes:
        raise UserError(
            f"{data}: {model} tells classes 0 to {classes - 1}, got {largest} at index "
            f"{int(y.argmax())} of y; evaluate it on the data of its own task"
        )


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 100 else f"{value:.1f}"


def _percent(interval: Interval) -> str:
    return f"{interval.value:.2%} [{interval.low:.2%}, {interval.high:.2%}]"
