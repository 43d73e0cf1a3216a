"""The commands that need no TensorFlow: evaluate, bench, report, doctor."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.evaluate import Classes
    from deploy.record import Interval

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON on stdout; everything else goes to stderr."
)
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads a session."
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
@click.argument("models", type=FILE, nargs=-1, required=True)
@threads_option
@click.option("--batch", type=click.IntRange(min=1), help="Samples a call for the throughput.")
@click.option("--processes", type=click.IntRange(min=5), help="Processes to spread sessions over.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@json_option
def bench_command(
    models: tuple[Path, ...],
    threads: int,
    batch: int | None,
    processes: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Time MODELS against the first of them, interleaved, in many sessions and processes.

    \b
    lightship bench baseline.onnx int8.onnx
    """
    import msgspec

    from deploy.bench import Bench, bench

    asked = {"batch": batch, "processes": processes, "threads": threads}
    settings = msgspec.convert({k: v for k, v in asked.items() if v is not None}, Bench)
    with click.progressbar(length=100, label="timing", file=sys.stderr) as bar:

        def advance(done: int, total: int) -> None:
            bar.update(int(100 * done / total) - bar.pos)

        measurement = bench(models, settings, seed=seed, on_progress=advance)
    if as_json:
        print_json({"models": [str(model) for model in models], "measurement": measurement})
        return
    click.echo(
        f"{'p50 ms':>8}{'p90 ms':>9}{'p99 ms':>9}{'speed-up':>9}{'':15}"
        f"{'samples/s':>11}{'load ms':>9}{'peak MB':>9}"
    )
    for model, seen in zip(models, measurement.latencies, strict=True):
        ratio = seen.speedup
        interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
        click.echo(model)  # on a line of its own: a path and the numbers would not fit one
        click.echo(
            f"{_ms(seen.p50_ms.value):>8}{_ms(seen.p90_ms):>9}{_ms(seen.p99_ms):>9}"
            f"{ratio.value:>8.2f}× {interval:14}{seen.throughput_per_s:>11,.0f}"
            f"{seen.load_ms:>9.1f}{seen.peak_rss_bytes / 1e6:>9.1f}"
        )
    for warning in measurement.warnings:
        click.echo(f"warning: {warning}", err=True)


@cli.command("report")
@click.argument("run", type=FOLDER)
@json_option
def report_command(run: Path, as_json: bool) -> None:
    """Write the report of a finished RUN again, from its results.json.

    \b
    lightship report runs/demo
    """
    from deploy.report import write_report
    from deploy.report.results import read_results

    results = read_results(run / "results.json")
    write_report(results, run)
    if as_json:
        print_json(results)
    else:
        click.echo(run / "report.html")


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
