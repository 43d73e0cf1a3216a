"""The command ``lightship``: parse, one call, one line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import deploy.cli
from compress.quiet import quiet_tensorflow
from deploy.cli import FILE, FOLDER, Commands, json_option, print_json
from deploy.errors import UserError, needs_extra

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from compress.data.task import Task
    from compress.progress import ConsoleWatcher
    from compress.quantize.sensitivity import LayerSensitivity
    from compress.recipe import Recipe
    from compress.train.fit import Fit
    from deploy.record import Artifact
    from deploy.session import ModelMetadata

Command = TypeVar("Command", bound=Callable[..., Any])

_EXAMPLES = """\b
From data to a report in one command:
    lightship demo
    lightship run lenet_5 --out runs/lenet_5
One step at a time, on files:
    lightship train --data mnist-sample --network lenet_5 --out lenet.keras
    lightship prune lenet.keras --data mnist-sample --out pruned.keras
    lightship export pruned.keras --data mnist-sample --out pruned.onnx
    lightship quantize pruned.onnx --data mnist-sample --out pruned-int8.onnx
    lightship bench pruned.onnx pruned-int8.onnx
What a device gets, and what it does with it:
    lightship bundle runs/demo -o model.lship
    lightship selftest model.lship
    lightship predict model.lship digit.png
"""


@click.group(cls=Commands, epilog=_EXAMPLES, context_settings={"max_content_width": 100})
@click.version_option(package_name="lightship")
def cli() -> None:
    """Make a trained network small and fast, prove what that cost, and ship it.

    Exit codes: 0 done, 2 a mistake of yours in one line, 1 a bug of ours with its traceback.
    """


def data_options(command: Command) -> Command:
    """Add the options that name a data set."""
    options = (
        click.option(
            "--data",
            "source",
            required=True,
            metavar="SOURCE",
            help="mnist-sample, mnist, fashion_mnist, cifar10, npz:PATH, idx:FOLDER, images:FOLDER "
            "or csv:PATH.",
        ),
        click.option(
            "--label-column", metavar="NAME", help="The column of a csv: that is the class."
        ),
        click.option("--train-samples", type=click.IntRange(min=1), help="Use only so many."),
        click.option(
            "--preprocess",
            metavar="SPEC",
            help="How samples become inputs: default, none, or a JSON list as in a recipe.  "
            "[default: what the model says; of a new model, default]",
        ),
        click.option(
            "--split-seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Which samples train and which test; keep it the same for all steps.",
        ),
        seed_option,
    )
    for option in reversed(options):
        command = option(command)
    return command


def fit_options(command: Command) -> Command:
    """Add the options of a training run."""
    options = (
        click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True),
        click.option("--batch-size", type=click.IntRange(min=1), default=128, show_default=True),
        click.option(
            "--optimizer",
            type=click.Choice(["adam", "adamw", "sgd", "rmsprop"]),
            default="adam",
            show_default=True,
        ),
        click.option(
            "--loss",
            type=click.Choice(["cross_entropy", "squared_error"]),
            default="cross_entropy",
            show_default=True,
        ),
        click.option("--learning-rate", type=float, help="Instead of the optimizer's default."),
        click.option(
            "--patience",
            type=click.IntRange(min=1),
            help="Stop after so many epochs without a lower validation loss; keep the best weights.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def out_option(default: str) -> Callable[[Command], Command]:
    """Return the option that says where the result goes."""
    return click.option(
        "--out", type=FILE, default=default, show_default=True, help="Where the result goes."
    )


def recipe_options(command: Command) -> Command:
    """Add the options that stand in for a recipe's own settings."""
    options = (
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Instead of the recipe's."),
        click.option("--threads", type=click.IntRange(min=1), help="Instead of the recipe's."),
        click.option("--remeasure", is_flag=True, help="Time again what was timed before."),
    )
    for option in reversed(options):
        command = option(command)
    return command


seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True
)
calibration_option = click.option(
    "--calibration",
    type=click.Choice(["minmax", "moving_average", "entropy", "percentile", "mse", "auto"]),
    help="How int8 ranges are found; auto tries all.  [default: minmax]",
)
trust_option = click.option(
    "--trust-code", is_flag=True, help="Run code that a model file carries, such as a Lambda layer."
)


@cli.command()
@click.option("--out", type=FOLDER, help="The run folder.  [default: runs/demo]")
@recipe_options
@json_option
def demo(
    out: Path | None, seed: int | None, threads: int | None, remeasure: bool, as_json: bool
) -> None:
    """Compress LeNet-5 on the embedded sample of MNIST: minutes, no network."""
    recipe = _resolved("demo", seed=seed, threads=threads)
    folder, store = _folders(recipe, out, None, seed=seed)
    _run(recipe, "demo", out=folder, store=store, remeasure=remeasure, as_json=as_json)


@cli.command()
@click.argument("recipe")
@click.option(
    "--out",
    type=FOLDER,
    help="The run folder.  [default: runs/NAME, with --seed N runs/NAME-seed-N]",
)
@click.option(
    "--store", type=FOLDER, help="Finished steps.  [default: .store beside the run folder]"
)
@recipe_options
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what is done already.")
@json_option
def run(
    recipe: str,
    out: Path | None,
    store: Path | None,
    seed: int | None,
    threads: int | None,
    remeasure: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Carry out RECIPE: a TOML file, or the name of one that ships with lightship.

    The names are demo, mnist_mlp, lenet_300_100, lenet_5 and fashion_resnet_8. A run that was cut
    off goes on where it was when the same command is given again.

    \b
    lightship run lenet_5
    lightship run my_recipe.toml --out runs/mine --dry-run
    """
    resolved = _resolved(recipe, seed=seed, threads=threads)
    folder, kept = _folders(resolved, out, store, seed=seed)
    if dry_run:
        _dry_run(resolved, out=folder, store=kept, as_json=as_json)
    else:
        _run(resolved, recipe, out=folder, store=kept, remeasure=remeasure, as_json=as_json)


@cli.command()
@data_options
@click.option(
    "--network",
    required=True,
    help="mlp, lenet_300_100, lenet_5, resnet_8, mobilenet_v1, ds_cnn, keras:PATH or "
    "module:function.",
)
@trust_option
@fit_options
@out_option("model.keras")
@json_option
def train(network: str, trust_code: bool, out: Path, as_json: bool, **options: Any) -> None:
    """Train a network; write it as a Keras file with its record beside it.

    \b
    lightship train --data mnist-sample --network lenet_5 --epochs 5 --out lenet.keras
    """
    from compress.artifacts import require_place, save_keras
    from compress.networks import parse_network
    from compress.pipeline import baseline, baseline_step

    require_place(out, suffix=".keras")
    chosen, fit, seed = (
        parse_network(network, trust_code=trust_code),
        _fit(options),
        options["seed"],
    )
    task = _task(options)
    with _watching(out, epochs=fit.epochs) as watcher:
        model, _ = baseline(chosen, fit, task, seed=seed, on_epoch=watcher.epoch_ended)
    about = _describe(task, baseline_step(chosen, fit))
    _done(out, save_keras(model, out, about, seed=seed, notes={}), as_json=as_json)


@cli.command()
@click.argument("model", type=FILE)
@data_options
@click.option("--final-sparsity", type=float, default=0.5, show_default=True, help="A fraction.")
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@trust_option
@fit_options
@out_option("pruned.keras")
@json_option
def prune(
    model: Path,
    final_sparsity: float,
    skip: tuple[str, ...],
    trust_code: bool,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Zero the smallest weights of a Keras MODEL while it is fine-tuned.

    \b
    lightship prune lenet.keras --data mnist-sample --final-sparsity 0.9 --out pruned.keras
    """
    from compress.artifacts import require_place, save_keras
    from compress.networks import load_keras
    from compress.prune.magnitude import MagnitudePrune
    from compress.steps import keras_step, reasons_left_alone

    require_place(out, suffix=".keras", other_than=model)
    asked = {"final_sparsity": final_sparsity, "skip": skip, "fine_tune": _fit(options)}
    step = _convert({"kind": "magnitude_prune", **asked}, MagnitudePrune)
    task, seed = _task(options, like=model), options["seed"]
    original = load_keras(model, trust_code=trust_code)
    with _watching(out, epochs=step.fine_tune.epochs) as watcher:
        pruned, _ = keras_step(original, step, task, seed=seed, on_epoch=watcher.epoch_ended)
    about = _describe(task, step, parent=model)
    notes = reasons_left_alone(original, step, pruned)
    _done(out, save_keras(pruned, out, about, seed=seed, notes=notes), as_json=as_json)


@cli.command()
@click.argument("model", type=FILE)
@data_options
@click.option("--opset", type=int, help="Version of the ONNX operator set.")
@trust_option
@out_option("model.onnx")
@json_option
def export(
    model: Path, opset: int | None, trust_code: bool, out: Path, as_json: bool, **options: Any
) -> None:
    """Turn a Keras MODEL into ONNX with the same numbers, proven on samples of the data.

    \b
    lightship export pruned.keras --data mnist-sample --out pruned.onnx
    """
    from compress.artifacts import require_place, save_onnx
    from compress.export.proven import Export
    from compress.export.proven import export as proven_export
    from compress.networks import load_keras
    from compress.steps import PARITY_SAMPLES

    require_place(out, suffix=".onnx", other_than=model)
    settings = _convert({"opset": opset} if opset is not None else {}, Export)
    task = _task(options, like=model)
    exported = proven_export(
        load_keras(model, trust_code=trust_code), settings, task.validation.x[:PARITY_SAMPLES]
    )
    about = _describe(task, {"kind": "export", **_builtins(settings)}, parent=model)
    _done(out, save_onnx(exported, out, about, seed=options["seed"], notes={}), as_json=as_json)


@cli.command()
@click.argument("model", type=FILE)
@data_options
@click.option(
    "--kind",
    type=click.Choice(["static", "mixed", "dynamic", "float16", "weight-only"]),
    default="static",
    show_default=True,
    help="What becomes smaller: weights and activations, both where a timing shows that it pays, "
    "or the weights alone.",
)
@calibration_option
@click.option(
    "--max-drop-points",
    type=float,
    help="For mixed: largest loss of validation accuracy.  [default: 0.3]",
)
@click.option(
    "--float-storage",
    type=click.Choice(["float32", "float16", "int8"]),
    help="For mixed: what layers in float keep their weights as.  [default: float32]",
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="For mixed: those of the device.  [default: 1]"
)
@click.option("--plot", type=FILE, help="For mixed: draw what was tried, as .svg, .png or .pdf.")
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    help="For static: the device.  [default: this machine]",
)
@click.option("--exclude", multiple=True, metavar="LAYER", help="For static: leave it in float.")
@click.option(
    "--exclude-type", multiple=True, metavar="TYPE", help="For static: Conv, DepthwiseConv, Add …"
)
@click.option(
    "--exclusion",
    type=click.Choice(["session-option", "structural"]),
    help="For static and mixed: what keeps float layers in float, whoever opens the file.",
)
@out_option("quantized.onnx")
@json_option
def quantize(
    model: Path,
    kind: str,
    calibration: str | None,
    max_drop_points: float | None,
    float_storage: str | None,
    threads: int | None,
    plot: Path | None,
    target: str | None,
    exclude: tuple[str, ...],
    exclude_type: tuple[str, ...],
    exclusion: str | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Store an ONNX MODEL in fewer bits, and compute in them where that pays.

    With --kind mixed, layers become int8 or stay float by what is measured here: minutes in which
    nothing else should run. How it was found is written to OUT.search.json.

    \b
    lightship quantize pruned.onnx --data mnist-sample --out pruned-int8.onnx
    lightship quantize pruned.onnx --data mnist-sample --kind mixed --out pruned-mixed.onnx
    """
    from compress.artifacts import replace_file, require_place, save_onnx
    from compress.export.metadata import load_onnx
    from compress.quantize.lint import lint_calibration
    from compress.quantize.plots import check_plot, plot_search
    from compress.steps import OnnxStep, onnx_step, reasons_left_alone

    require_place(out, suffix=".onnx", other_than=model)
    asked = {
        "calibration": calibration,
        "max_drop_points": max_drop_points,
        "float_storage": float_storage,
        "threads": threads,
        "target": target,
        "exclude": exclude or None,
        "exclude_types": exclude_type or None,
        "exclusion": exclusion and exclusion.replace("-", "_"),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    name = kind if kind == "float16" else f"quantize_{kind.replace('-', '_')}"
    step = _convert({"kind": name, **given}, OnnxStep)
    if plot is not None:
        if kind != "mixed":
            raise UserError(f"--plot: there is a search to draw with --kind mixed, got {kind}")
        check_plot(plot)
    task, seed = _task(options, like=model), options["seed"]
    original = load_onnx(model)
    for finding in lint_calibration(original, task) if kind in {"static", "mixed"} else ():
        click.echo(f"warning: {finding}", err=True)
    with _watching(out, epochs=0) if kind == "mixed" else nullcontext() as watcher:
        hears = watcher.search_advanced if watcher else None
        made = onnx_step(original, step, task, seed=seed, on_search=hears)
    if calibration == "auto":
        click.echo(f"calibration: {_builtins(made.step)['calibration']}", err=True)
    about = _describe(task, made.step, parent=model)
    notes = reasons_left_alone(original, made.step, made.model)
    artifact = save_onnx(made.model, out, about, seed=seed, notes=notes)
    if made.search is not None:
        import msgspec

        search = msgspec.json.format(msgspec.json.encode(made.search))
        place = out.with_name(f"{out.name}.search.json")
        replace_file(place, lambda aside: aside.write_bytes(search))
        chosen = made.search.chosen
        click.echo(
            f"{len(chosen.floats)} of {len(made.search.layers)} layers stay in float"
            f"{': ' if chosen.floats else ''}{', '.join(chosen.floats)}; {chosen.speedup:.2f}× "
            f"[{chosen.low:.2f}, {chosen.high:.2f}] the speed of float for {chosen.drop_points:+.2f} "
            f"points of validation accuracy lost; {place} says what was tried",
            err=True,
        )
        if plot is not None:
            replace_file(plot, partial(plot_search, made.search))
    _done(out, artifact, as_json=as_json)


@cli.command("sensitivity")
@click.argument("model", type=FILE)
@data_options
@calibration_option
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Validation samples to look at.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--plot", type=FILE, help="Draw it, as .svg, .png or .pdf.")
@json_option
def sensitivity_command(
    model: Path,
    calibration: str | None,
    samples: int,
    threads: int,
    plot: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Rank the layers of a float ONNX MODEL by what each costs, and saves, in int8.

    KL is how far the outputs move when one layer alone is int8, on validation samples; the time is
    that of the layer's kernel, float less int8; the last column is the price of a microsecond.

    \b
    lightship sensitivity lenet.onnx --data mnist-sample --plot layers.svg
    """
    from compress.artifacts import replace_file
    from compress.export.metadata import load_onnx
    from compress.quantize.plots import check_plot, plot_sensitivity
    from compress.quantize.post_training import QuantizeStatic
    from compress.quantize.sensitivity import sensitivity
    from deploy.record import SessionOptions

    if plot is not None:
        check_plot(plot)
    step = _convert({"calibration": calibration} if calibration else {}, QuantizeStatic)
    task = _task(options, like=model)
    with _watching(model, epochs=0) as watcher:
        layers = sensitivity(
            load_onnx(model),
            step,
            task,
            samples=samples,
            options=SessionOptions(threads=threads),
            on_progress=partial(watcher.search_advanced, "looking at each layer"),
        )
    if plot is not None:
        replace_file(plot, partial(plot_sensitivity, layers))
    if as_json:
        print_json({"model": str(model), "layers": [_layer_facts(layer) for layer in layers]})
        return
    width = max(5, *(len(layer.name) for layer in layers))
    click.echo(f"{'layer':{width}}    KL, nats  Δ points  saved, µs  nats per µs")
    for layer in layers:
        saved = "" if layer.saved_us is None else f"{layer.saved_us:+.1f}"
        price = "" if layer.nats_per_us is None else f"{layer.nats_per_us:.1e}"
        click.echo(
            f"{layer.name:{width}}  {layer.kl_divergence:10.2e}  {layer.delta_points:+8.2f}  "
            f"{saved:>9}  {price:>11}"
        )


@cli.command()
@data_options
@out_option("test.npz")
def evalset(out: Path, **options: Any) -> None:
    """Write the test samples of a data set to a file, for ``evaluate`` here or on a device.

    \b
    lightship evalset --data mnist-sample --out test.npz
    """
    from compress.artifacts import replace_file
    from deploy.evalset import EvalSet

    test = _task(options).test
    replace_file(out, EvalSet(x=test.raw, y=test.y).save)
    click.echo(f"{out}  {len(test):,} samples")


for _command in deploy.cli.cli.commands.values():
    cli.add_command(_command)


def main() -> None:
    """Run the command line; the entry point of ``lightship``."""
    quiet_tensorflow()
    cli(prog_name="lightship")


def _resolved(name: str, *, seed: int | None, threads: int | None) -> Recipe:
    """Return a recipe with the command line's seed and threads in place of its own."""
    with needs_extra("compress"):
        from compress.recipe import load_recipe
    import msgspec

    recipe = load_recipe(name)
    if threads is not None:
        bench = msgspec.structs.replace(recipe.bench, threads=threads)
        recipe = msgspec.structs.replace(recipe, bench=bench)
    return recipe if seed is None else msgspec.structs.replace(recipe, seed=seed)


def _folders(
    recipe: Recipe, out: Path | None, store: Path | None, *, seed: int | None
) -> tuple[Path, Path]:
    """Return the run folder and the store; another seed than the recipe's gets its own folder."""
    name = recipe.name if seed is None else f"{recipe.name}-seed-{seed}"
    folder = out or Path("runs") / name
    return folder, store or folder.parent / ".store"


def _run(
    recipe: Recipe, name: str, *, out: Path, store: Path, remeasure: bool, as_json: bool
) -> None:
    """Carry a recipe out, print its table and its verdict, and say where the report is."""
    with needs_extra("compress"):
        from compress import pipeline
    from compress.progress import ConsoleWatcher, print_table
    from compress.store import Store

    command = f"lightship run {name} --seed {recipe.seed} --threads {recipe.bench.threads}"
    with ConsoleWatcher(variants=1 + len(recipe.variants)) as watcher:
        results = pipeline.run(
            recipe,
            out=out,
            store=Store(store),
            watcher=watcher,
            command=command,
            now=datetime.now(timezone.utc),
            remeasure=remeasure,
        )
    if as_json:
        print_json(results)
        return
    print_table(results)
    for warning in results.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(results.verdict)
    if (out / pipeline.BEST).exists():
        click.echo(out / pipeline.BEST)
    click.echo(out / "report.html")


def _dry_run(recipe: Recipe, *, out: Path, store: Path, as_json: bool) -> None:
    """Print the resolved recipe, and which of its steps an earlier run has done."""
    from compress.data.splits import load_task
    from compress.pipeline import plan
    from compress.recipe import to_toml
    from compress.store import Store

    if not as_json:
        click.echo(to_toml(recipe))
    stages = plan(recipe, load_task(recipe.data, seed=recipe.seed))
    found = {name: Store(store).find(stage.onnx_key) for name, stage in stages.items()}
    if as_json:
        done = {name: folder is not None for name, folder in found.items()}
        print_json({"out": str(out), "recipe": _builtins(recipe), "done": done})
        return
    for name, stage in stages.items():
        origin = f"from {stage.parent}" if stage.parent else "trained"
        click.echo(f"# {'done ' if found[name] else 'to do'}  {name}  {origin}")


def _task(options: dict[str, Any], *, like: Path | None = None) -> Task:
    """Load the data that the options name.

    Args:
        options: what ``data_options`` gave.
        like: a model whose preprocessing is to be kept; None for a new model.

    Raises:
        UserError: if the model says nothing of its preprocessing and neither do the options.
    """
    with needs_extra("compress"):
        from compress.artifacts import preprocess_of
        from compress.data.sources import Data
        from compress.data.splits import load_task

    names = ("source", "label_column", "train_samples")
    given = {name: options[name] for name in names if options[name] is not None}
    asked = options["preprocess"]
    if asked == "none":
        given["preprocess"] = []
    elif asked not in {None, "default"}:
        given["preprocess"] = _json_list(asked)
    elif asked is None and like is not None:
        given["preprocess"] = preprocess_of(like)
    return load_task(_convert(given, Data), seed=options["split_seed"])


def _json_list(text: str) -> list[Any]:
    """Return the list that a JSON text spells out."""
    import msgspec

    try:
        return msgspec.json.decode(text.encode(), type=list[Any])
    except msgspec.DecodeError as error:
        raise UserError(
            f"--preprocess: must be default, none or a JSON list such as "
            f'[{{"op": "cast"}}, {{"op": "scale"}}]; got {text!r}'
        ) from error


def _fit(options: dict[str, Any]) -> Fit:
    """Return the training run that ``fit_options`` describe."""
    from compress.train.fit import Fit

    rate, patience = options["learning_rate"], options["patience"]
    optimizer = {
        "kind": options["optimizer"],
        **({"learning_rate": rate} if rate is not None else {}),
    }
    given = {name: options[name] for name in ("epochs", "batch_size", "loss")}
    stopping = {"early_stopping": {"patience": patience}} if patience else {}
    fit: Fit = _convert({**given, "optimizer": optimizer, **stopping}, Fit)
    return fit


def _convert(value: dict[str, Any], kind: Any) -> Any:
    """Check options as a recipe's keys would be checked."""
    from compress.recipe import decode

    return decode(value, kind, where=f"lightship {click.get_current_context().info_name}")


def _builtins(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _layer_facts(layer: LayerSensitivity) -> dict[str, Any]:
    return {**_builtins(layer), "nats_per_us": layer.nats_per_us}


def _describe(task: Task, step: Any, *, parent: Path | None = None) -> ModelMetadata:
    """Return what a model made by one step says of itself."""
    from compress.artifacts import describe
    from deploy.record import sha256_of

    return describe(task, step=_builtins(step), parent=sha256_of(parent) if parent else None)


def _watching(out: Path, *, epochs: int) -> ConsoleWatcher:
    """Return a watcher of one model being made."""
    from compress.progress import ConsoleWatcher

    watcher = ConsoleWatcher(variants=1)
    watcher.begins(out.stem, epochs=epochs)
    return watcher


def _done(out: Path, artifact: Artifact, *, as_json: bool) -> None:
    """Say what was written: one line, or the whole record."""
    if as_json:
        print_json(artifact)
        return
    zeros = 1 - artifact.nonzero_parameters / max(1, artifact.parameters)
    click.echo(
        f"{out}  {artifact.size_bytes:,} bytes, {artifact.gzip_bytes:,} gzipped, "
        f"{artifact.parameters:,} weights, {zeros:.1%} zeros"
    )
