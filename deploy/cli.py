"""The commands that need no TensorFlow: from evaluate to doctor, on files and bundles."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from deploy.bundle.runtime import Runtime
    from deploy.bundle.watch import Answered
    from deploy.record import Goal, MachineBench, Measurement, SessionOptions

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

trust_model_option = click.option(
    "--trust-model",
    is_flag=True,
    help="Do not try a model file first in a process with limits on memory and time.",
)

public_key_option = click.option(
    "--public-key", type=FILE, help="Refuse BUNDLE unless BUNDLE.sig was made with its other half."
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
@trust_model_option
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
    trust_model: bool,
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
    require_harmless_models(trust_model, options, model, against)
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

    if host is None:
        seen = _bench_here(models, trust_model=trust_model, **asked)
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
    models: tuple[Path, ...],
    *,
    seed: int,
    memory_limit: str | None,
    trust_model: bool,
    **asked: Any,
) -> MachineBench:
    import tempfile

    import msgspec

    from deploy.bench import Bench, bench
    from deploy.bundle.opened import is_bundle
    from deploy.bundle.unpack import to_bench
    from deploy.record import MachineBench

    settings = msgspec.convert({k: v for k, v in asked.items() if v is not None}, Bench)
    limit = _size("--memory-limit", memory_limit)
    loose = [model for model in models if not is_bundle(model)]
    require_harmless_models(trust_model, settings.session, *loose)
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

    from deploy.bundle.container import write_whole
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
        write_whole(junit, formats.to_junit(checked))
    if markdown is not None:
        write_whole(markdown, formats.to_markdown(checked).encode())
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
@trust_model_option
@threads_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random inputs.")
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

    \b
    lightship audit pruned-int8.onnx --against pruned.onnx
    """
    from deploy.audit import audit, table
    from deploy.record import SessionOptions

    options = SessionOptions(threads=threads)
    require_harmless_models(trust_model, options, model, against)
    found = audit(model, options, against=against, seed=seed)
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
    help="A .lship file, or else a folder.  [default: model.lship; for Triton, repository]",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["as-is", "ort", "triton"]),
    default="as-is",
    show_default=True,
    help="The model as it is, in ORT format, or a folder in a Triton model repository.",
)
@click.option("--name", help="What the bundle is called.  [default: run and variant]")
@click.option("--model-version", default="1.0.0", show_default=True, help="Its semantic version.")
@click.option(
    "--licence", default="not stated", show_default=True, help="The licence of the model."
)
@click.option("--sign", type=FILE, help="A private key (EC, PEM): writes OUT.sig beside it.")
@trust_model_option
@json_option
def bundle_command(
    source: Path,
    variant: str | None,
    data: Path | None,
    out: Path | None,
    form: Literal["as-is", "ort", "triton"],
    name: str | None,
    model_version: str,
    licence: str,
    sign: Path | None,
    trust_model: bool,
    as_json: bool,
) -> None:
    """Pack what a device needs of SOURCE, a finished run or a single model, into one file.

    A single model is an ONNX or a .tflite file. For Triton, --out is its model repository.

    \b
    lightship bundle runs/demo -o model.lship
    lightship bundle runs/demo --variant int8 -o int8.lship
    lightship bundle pruned.onnx --data test.npz -o pruned.lship
    lightship bundle runs/demo --variant int8 --format triton -o repository
    """
    import tempfile

    from deploy.bundle.make import Label, bundle_model, bundle_run
    from deploy.bundle.signature import load_private_key, write_signature
    from deploy.bundle.triton import write_triton
    from deploy.record import SessionOptions

    label = Label(name=name, version=model_version, licence=licence)
    key = load_private_key(sign) if sign else None
    if key is not None and form == "triton":
        raise UserError("--sign: signs a bundle; Triton's layout has no place for a signature")
    kind: Literal["as-is", "ort"] = "ort" if form == "ort" else "as-is"
    with tempfile.TemporaryDirectory(prefix="lightship-bundle-") as scratch:
        place = out or Path("model.lship")
        if form == "triton":
            place = Path(scratch, "model.lship")
        if source.is_dir():
            if data is not None:
                raise UserError(
                    f"--data: {source} is a run and has its own test samples; leave it out"
                )
            bundle = bundle_run(source, place, variant=variant, label=label, form=kind)
        elif data is None or variant is not None:
            raise UserError(
                f"{source}: a single model needs --data and no --variant; give the run's folder for "
                "what was measured in a run"
            )
        else:
            require_harmless_models(trust_model, SessionOptions(), source)
            bundle = bundle_model(source, data, place, label=label, form=kind)
        if form == "triton":
            place = write_triton(bundle, out or Path("repository"))
    if key is not None:
        write_signature(place, bundle.manifest.name, key)
    if as_json:
        print_json({"path": str(place), "bundle": bundle.id, "manifest": bundle.manifest})
        return
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    size_bytes = sum(file.stat().st_size for file in files)
    said = bundle.manifest
    click.echo(f"{place}  {said.name} {said.version}, {size_bytes:,} bytes")
    if form == "triton":
        click.echo("preprocessing is not part of a model in Triton: README.md says what to send")


@cli.command("convert")
@click.argument("model", type=FILE)
@click.option(
    "--out", "-o", type=FILE, default="model.ort", show_default=True, help="Where the result goes."
)
@json_option
def convert_command(model: Path, out: Path, as_json: bool) -> None:
    """Turn an ONNX MODEL into ORT format, for a reduced build of ONNX Runtime, same answers.

    Beside it goes OUT.config, the operators and types that the build has to include:
    build.py --include_ops_by_config OUT.config --enable_reduced_operator_type_support

    \b
    lightship convert int8.onnx -o int8.ort
    """
    from deploy.bundle.container import write_whole
    from deploy.ort_format import required_operators, to_ort

    if out.suffix != ".ort":
        raise UserError(f"--out: must end in .ort, got {out}")
    if not model.is_file():
        raise UserError(f"{model}: no such file; give an ONNX model")
    content = model.read_bytes()
    try:
        converted = to_ort(content)
    except UserError as error:
        raise UserError(str(error).replace("model:", f"{model}:", 1)) from error
    operators = required_operators(converted)
    config = out.with_name(out.name + ".config")
    for path, made in ((out, converted), (config, operators.encode())):
        write_whole(path, made)
    if as_json:
        print_json({"path": str(out), "size_bytes": len(converted), "operators": operators})
        return
    click.echo(f"{out}  {len(converted):,} bytes, {len(content):,} as ONNX; {config}")


@cli.command("selftest")
@click.argument("bundle", type=FILE_OR_FOLDER)
@public_key_option
@threads_option
@memory_limit_option
@json_option
def selftest_command(
    bundle: Path, public_key: Path | None, threads: int, memory_limit: str | None, as_json: bool
) -> None:
    """Say whether BUNDLE is whole and this machine answers as the one that measured it.

    Exit codes: 0 it passes, 1 it fails, 2 there is nothing to test, or this ONNX Runtime is too old.

    \b
    lightship selftest model.lship
    """
    from deploy.bundle.footprint import fitting
    from deploy.bundle.selftest import selftest

    with fitting(bundle, _size("--memory-limit", memory_limit), threads=threads):
        found = selftest(bundle, threads=threads, public_key=public_key)
    if as_json:
        print_json(found)
    else:
        click.echo(found.sentence)
    if not found.passed:
        click.get_current_context().exit(1)


@cli.command("predict")
@click.argument("bundle", type=FILE_OR_FOLDER)
@click.argument("samples", type=FILE_OR_FOLDER, required=False)
@click.option("--watch", type=FOLDER, help="In place of SAMPLES: answer for files as they come.")
@click.option(
    "--top", type=click.IntRange(min=1), default=1, show_default=True, help="Classes a sample."
)
@public_key_option
@threads_option
@memory_limit_option
@json_option
def predict_command(
    bundle: Path,
    samples: Path | None,
    watch: Path | None,
    top: int,
    public_key: Path | None,
    threads: int,
    memory_limit: str | None,
    as_json: bool,
) -> None:
    """Answer for SAMPLES with BUNDLE: an image, a folder, a .csv table or an .npy array.

    A classifier names the class, a regression prints its values, a detector of anomalies its score.
    With --watch it answers for each file in the folder once it is whole, and goes on until Ctrl-C or
    SIGTERM; --json prints one line of JSON a sample then.

    \b
    lightship predict model.lship digit.png
    lightship predict model.lship digits/ --top 3 --json
    lightship predict model.lship patients.csv
    lightship predict model.lship --watch camera/ --json
    """
    from deploy import load
    from deploy.bundle.footprint import fitting
    from deploy.bundle.watch import answers

    if (samples is None) == (watch is None):
        raise UserError("predict: give SAMPLES or --watch FOLDER, one of the two")
    found = []
    with fitting(bundle, _size("--memory-limit", memory_limit), threads=threads):
        runtime = load(bundle, threads=threads, warm_up=watch is not None, public_key=public_key)
        if watch is not None:
            _predict_as_they_come(runtime, watch, top=top, as_json=as_json)
        elif samples is not None:
            found = answers(runtime, samples, top=top)
    if watch is not None:
        return
    if as_json:
        print_json([answered.as_json() for answered in found])
        return
    width = max(len(answer.sample) for answer in found)
    for answer in found:
        click.echo(_answer_line(answer, width))


def _predict_as_they_come(runtime: Runtime, folder: Path, *, top: int, as_json: bool) -> None:
    """Print an answer for every file that comes, until Ctrl-C or SIGTERM."""
    import signal
    import threading

    import msgspec

    from deploy.bundle.watch import NoAnswer, answers_as_they_come

    stop = threading.Event()
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda *_: stop.set())
    try:
        for answer in answers_as_they_come(runtime, folder, top=top, stop=stop):
            if as_json:
                said = answer if isinstance(answer, NoAnswer) else answer.as_json()
                click.echo(msgspec.json.encode(said))
            elif isinstance(answer, NoAnswer):
                click.echo(f"warning: {answer.error}", err=True)
            else:
                click.echo(_answer_line(answer, 0))
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _answer_line(answered: Answered, width: int) -> str:
    return f"{answered.sample:{width}}  {answered.answer.text}"


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


def require_harmless_models(trusted: bool, options: SessionOptions, *models: Path | None) -> None:
    """Try models of unknown makers where they can do no harm, unless they are trusted."""
    from deploy.isolation import require_harmless

    for model in models:
        if model is not None and not trusted:
            require_harmless(model, options)


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
