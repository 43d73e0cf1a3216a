"""The commands that need no TensorFlow: from evaluate to doctor, on files and bundles."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.record import Goal

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE_OR_FOLDER = click.Path(path_type=Path)

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
@click.option(
    "--task",
    type=click.Choice(["classification", "multi_label", "regression", "reconstruction"]),
    help="What a model of another maker is for.  [default: what the model says]",
)
@click.option("--metric", help="What decides, such as f1_macro.  [default: what the model says]")
@threads_option
@json_option
def evaluate_command(
    model: Path,
    data: Path,
    against: Path | None,
    task: Any,
    metric: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Measure how good MODEL is at its task, in the session that ships.

    \b
    lightship evaluate runs/demo/variants/int8/model.onnx \\
        --data runs/demo/test.npz --against runs/demo/variants/baseline/model.onnx
    lightship evaluate int8.onnx --data test.npz --metric f1_macro
    """
    from deploy.evalset import EvalSet
    from deploy.evaluate import answers_of, compare, evaluate, verdict
    from deploy.goals import bounds, chosen_goal, metric_of, score
    from deploy.record import SessionOptions
    from deploy.session import open_model

    options = SessionOptions(threads=threads)
    opened = open_model(model, options)
    goal = chosen_goal(opened.metadata.goal, task=task, metric=metric)
    samples = EvalSet.load(data, goal.task)
    answers = answers_of(opened, samples.x, goal)
    _require_known_truth(samples.y, answers, goal, data=data, model=model)
    evaluation = evaluate(answers, samples.y, goal)
    comparison = None
    if against is not None:
        reference = answers_of(open_model(against, options), samples.x, goal)
        comparison = compare(answers, reference, samples.y, goal)
    if as_json:
        print_json({"goal": goal, "evaluation": evaluation, "comparison": comparison})
        return
    seen, title = evaluation.score, metric_of(goal).title
    width = max(len(title), 8)
    click.echo(
        f"{title:{width}}  {score(goal, seen.value)} {bounds(goal, seen.low, seen.high)} "
        f"on {evaluation.samples:,} samples"
    )
    if comparison is not None:
        told = [verdict(comparison, goal)]
        if comparison.mcnemar_p is not None:
            told.append(f"McNemar p = {comparison.mcnemar_p:.3g}")
        if comparison.agreement is not None:
            told.append(f"same answer on {comparison.agreement:.2%}")
        click.echo(f"{'against':{width}}  {against}: {', '.join(told)}")


@cli.command("bench")
@click.argument("models", type=FILE_OR_FOLDER, nargs=-1, required=True)
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
    """Time MODELS, ONNX files or bundles, against the first, in many sessions and processes.

    The JSON names the bytes that were timed: lightship report --add shows it beside a run.

    \b
    lightship bench baseline.onnx int8.onnx
    lightship bench model.lship --json > pi4.json
    """
    import tempfile

    import msgspec

    from deploy.bench import Bench, bench
    from deploy.bundle.unpack import to_bench
    from deploy.record import MachineBench

    asked = {"batch": batch, "processes": processes, "threads": threads}
    settings = msgspec.convert({k: v for k, v in asked.items() if v is not None}, Bench)
    with (
        tempfile.TemporaryDirectory(prefix="lightship-bench-") as scratch,
        click.progressbar(length=100, label="timing", file=sys.stderr) as bar,
    ):

        def advance(done: int, total: int) -> None:
            bar.update(int(100 * done / total) - bar.pos)

        files, named = to_bench(models, Path(scratch))
        measurement = bench(
            files, settings, seed=seed, names=[str(model) for model in models], on_progress=advance
        )
    if as_json:
        print_json(MachineBench(models=named, measurement=measurement))
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
@json_option
def selftest_command(bundle: Path, threads: int, as_json: bool) -> None:
    """Say whether BUNDLE is whole and this machine answers as the one that measured it.

    Exit codes: 0 it passes, 1 it fails, 2 there is nothing to test, or this ONNX Runtime is too old.

    \b
    lightship selftest model.lship
    """
    from deploy.bundle.selftest import selftest

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
@json_option
def predict_command(bundle: Path, samples: Path, top: int, threads: int, as_json: bool) -> None:
    """Answer for SAMPLES, an image, a folder of images or an .npy array, with BUNDLE.

    A classifier names the class, a regression prints its values, a detector of anomalies its score.

    \b
    lightship predict model.lship digit.png
    lightship predict model.lship digits/ --top 3 --json
    """
    from deploy import load
    from deploy.bundle.answers import answers_in_words
    from deploy.bundle.samples import read_samples

    runtime = load(bundle, threads=threads, warm_up=False)
    given = read_samples(samples, runtime.metadata.raw)
    rows = answers_in_words(runtime.predict(given.x), runtime.metadata, top=top)
    if as_json:
        print_json(
            [{"sample": name, **row.data} for name, row in zip(given.names, rows, strict=True)]
        )
        return
    width = max(map(len, given.names))
    for name, row in zip(given.names, rows, strict=True):
        click.echo(f"{name:{width}}  {row.text}")


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


def _require_known_truth(y: Any, answers: Any, goal: Goal, *, data: Path, model: Path) -> None:
    """Refuse labels that the model has no score for.

    Raises:
        UserError: if ``y`` holds a class that the model does not know, or has more or fewer labels
            or targets than the model.
    """
    outputs = answers.shape[1]
    if goal.task == "classification" and int(y.max()) >= outputs:
        raise UserError(
            f"{data}: {model} tells classes 0 to {outputs - 1}, got {int(y.max())} at index "
            f"{int(y.argmax())} of y; evaluate it on the data of its own task"
        )
    if y.ndim == 2 and y.shape[1] != outputs:
        raise UserError(
            f"{data}: {model} gives {outputs} numbers a sample, y has {y.shape[1]}; evaluate it on "
            "the data of its own task"
        )


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 100 else f"{value:.1f}"
