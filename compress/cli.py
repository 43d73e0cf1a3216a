"""The command ``lightship``: parse, one call, one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

import deploy.cli
from compress.quiet import quiet_tensorflow
from deploy.cli import (
    FILE,
    FOLDER,
    Commands,
    json_option,
    print_json,
    require_harmless_models,
    trust_model_option,
)
from deploy.errors import UserError, needs_extra

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from compress.data.task import Task
    from compress.progress import ConsoleWatcher
    from compress.quantize.sensitivity import LayerSensitivity
    from compress.recipe import Recipe
    from compress.train.distribute import Cluster
    from compress.train.fit import Fit, TrainingFiles
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
            help="mnist-sample, mnist, fashion_mnist, cifar10, digits, breast_cancer, diabetes, "
            "npz:PATH, npy:FOLDER, idx:FOLDER, images:FOLDER or csv:PATH.",
        ),
        click.option(
            "--task",
            type=click.Choice(["classification", "multi_label", "regression", "reconstruction"]),
            help="What is learned.  [default: what the model says; of a new one, classification]",
        ),
        click.option(
            "--metric",
            help="What decides, such as f1_macro.  [default: the model's, or the task's]",
        ),
        click.option(
            "--label-column",
            metavar="NAME",
            multiple=True,
            help="The column of a csv: that is the class or target; several times for several.",
        ),
        click.option(
            "--normal", metavar="LABEL", multiple=True, help="For reconstruction: a normal class."
        ),
        click.option(
            "--categorical",
            multiple=True,
            metavar="NAME",
            help="A column of a csv: that holds texts.",
        ),
        click.option(
            "--image-size",
            type=click.IntRange(min=1),
            nargs=2,
            metavar="HEIGHT WIDTH",
            help="Bring the images of a folder to one size.",
        ),
        click.option(
            "--clean",
            metavar="RULES",
            help='What is put right first, as in a recipe: \'{"missing": "median"}\'.',
        ),
        click.option(
            "--augment",
            metavar="LIST",
            help='What training does to its batches, as in a recipe: \'[{"kind": "shift"}]\'.',
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
            type=click.Choice(["adam", "adamw", "sgd", "rmsprop", "gradient_descent"]),
            default="adam",
            show_default=True,
        ),
        click.option(
            "--loss",
            type=click.Choice(
                [
                    "cross_entropy",
                    "binary_cross_entropy",
                    "focal",
                    "brier",
                    "mean_squared_error",
                    "mean_absolute_error",
                    "huber",
                ]
            ),
            help="[default: that of the task]",
        ),
        click.option("--learning-rate", type=float, help="Instead of the optimizer's default."),
        click.option(
            "--patience",
            type=click.IntRange(min=1),
            help="Stop after so many epochs without a lower validation loss; keep the best weights.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(
                [
                    "constant",
                    "exponential",
                    "polynomial",
                    "cosine",
                    "one_cycle",
                    "reduce_on_plateau",
                ]
            ),
            help="How the learning rate moves.  [default: constant]",
        ),
        click.option("--warmup-epochs", type=float, help="Let the learning rate climb first."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any key of a recipe's [train] table, such as optimizer.momentum=0.9, "
            "regularise.dropout=0.3 or 'schedule={kind=\"step\", at_epochs=[5, 8]}'.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def living_options(command: Command) -> Command:
    """Add the options of what a training leaves on disk while it runs."""
    options = (
        click.option("--tensorboard", type=FOLDER, help="Write logs for TensorBoard there."),
        click.option(
            "--restart", is_flag=True, help="Begin anew, even if this training was cut off before."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def worker_options(command: Command) -> Command:
    """Add the options of a training that several processes share."""
    options = (
        click.option(
            "--workers",
            metavar="HOST:PORT,HOST:PORT",
            help="Train on several machines: the same on all of them, with an --index each. "
            "--batch-size is that of all together.  [default: as TF_CONFIG says]",
        ),
        click.option(
            "--index", type=click.IntRange(min=0), help="Which of --workers this is, from 0."
        ),
        click.option(
            "--local-workers",
            type=click.IntRange(min=2),
            help="Train in so many processes of this machine, to try it.",
        ),
        click.option(
            "--worker-timeout",
            type=click.FloatRange(min=0, min_open=True),
            default=120.0,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for the other workers.",
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
@click.option(
    "--tensorboard", type=FOLDER, help="Write logs for TensorBoard there, a folder per variant."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved recipe and what is done already.")
@json_option
def run(
    recipe: str,
    out: Path | None,
    store: Path | None,
    seed: int | None,
    threads: int | None,
    remeasure: bool,
    tensorboard: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Carry out RECIPE: a TOML file, or the name of one that ships with lightship.

    The names are demo, mnist_mlp, lenet_300_100, lenet_5, fashion_resnet_8, breast_cancer, diabetes
    and digits_anomaly. A run that was cut off goes on where it was when the same command is given
    again.

    \b
    lightship run lenet_5
    lightship run my_recipe.toml --out runs/mine --dry-run
    """
    resolved = _resolved(recipe, seed=seed, threads=threads)
    folder, kept = _folders(resolved, out, store, seed=seed)
    if dry_run:
        _dry_run(resolved, out=folder, store=kept, as_json=as_json)
    else:
        _run(
            resolved,
            recipe,
            out=folder,
            store=kept,
            remeasure=remeasure,
            tensorboard=tensorboard,
            as_json=as_json,
        )


@cli.command()
@click.argument("recipes", nargs=-1, required=True, metavar="RECIPE...")
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option(
    "--hold-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Instead of folds: hold out this share of the samples, drawn anew in each repeat.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True)
@click.option(
    "--stratified/--not-stratified",
    default=True,
    show_default=True,
    help="Whether every class keeps its share in each fold.",
)
@click.option("--metric", help="Such as val_loss.  [default: the task's own]")
@click.option("--out", type=FOLDER, default=Path("runs/validate"), show_default=True)
@click.option(
    "--store", type=FOLDER, help="Finished folds.  [default: .store beside the output folder]"
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Instead of the first recipe's.")
@json_option
def validate(
    recipes: tuple[str, ...],
    folds: int,
    hold_out: float | None,
    repeats: int,
    stratified: bool,
    metric: str | None,
    out: Path,
    store: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Choose between RECIPEs by cross-validation; train the best again on all training data.

    The candidates are recipes, or one recipe with alternatives in the place of values:
    optimizer = { choice = [{ kind = "adam" }, { kind = "sgd" }] }. All see the same folds. The
    test split is not touched. Finished folds are kept, so the same command goes on where it was
    cut off, and more folds or candidates cost only what is new.

    \b
    lightship validate one.toml other.toml --folds 5 --repeats 2
    """
    with needs_extra("compress"):
        from compress.selection import (
            PICTURE,
            WINNER_MODEL,
            WINNER_RECIPE,
            choose,
            load_candidates,
            rows,
            verdict,
        )
    from compress.store import Store
    from compress.train.validate import HoldOut, KFold

    def told(name: str, done: int, total: int, fold: Any) -> None:
        click.echo(f"{done}/{total}  {name}: {fold.value:.4f}  {fold.seconds:.1f} s", err=True)

    found = choose(
        load_candidates(recipes, seed=seed),
        KFold(folds=folds, repeats=repeats, stratified=stratified)
        if hold_out is None
        else HoldOut(fraction=hold_out, repeats=repeats, stratified=stratified),
        metric=metric,
        out=out,
        store=Store(store or out.parent / ".store"),
        on_fold=told,
    )
    if as_json:
        print_json(found)
        return
    for row in rows(found):
        click.echo(f"{found.metric} {row.mean} {row.interval}  {row.against_winner}  {row.name}")
    click.echo(verdict(found))
    for name in (PICTURE, WINNER_MODEL, WINNER_RECIPE):
        click.echo(out / name)


@cli.command()
@click.argument("recipe")
@click.option("--out", type=FOLDER, help="Where the search is kept.  [default: runs/NAME-search]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Trials at once, each in a process.  [default: 1; with --ray, the cluster's cores]",
)
@click.option(
    "--ray",
    "cluster",
    metavar="ADDRESS",
    help="Place trials on a Ray cluster: auto for the one this machine is in, or HOST:PORT.",
)
@click.option("--trials", type=click.IntRange(min=1), help="Instead of the recipe's.")
@click.option(
    "--minutes", type=click.FloatRange(min=0, min_open=True), help="Instead of the recipe's."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Instead of the recipe's.")
@json_option
def tune(
    recipe: str,
    out: Path | None,
    workers: int | None,
    cluster: str | None,
    trials: int | None,
    minutes: float | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """Search the values that a RECIPE leaves open as ranges; write the best as a recipe.

    A range stands in the recipe in the place of a value: learning_rate = { log = [1e-4, 1e-1] },
    and the table [tune] says how to search. Trials are judged by validation; the test split is
    not touched. A search that was cut off goes on where it was when the same command is given
    again; after Ctrl-C or --minutes the best so far is there.

    \b
    lightship tune my_search.toml --workers 2
    lightship run runs/mine-search/best.toml
    """
    with needs_extra("compress"):
        from compress.progress import SearchWatcher
        from compress.tuning import BEST, PICTURE, load_search_recipe, tune_recipe

    asked = load_search_recipe(recipe, trials=trials, minutes=minutes, seed=seed)
    folder = out or Path("runs") / f"{asked.example.name}-search"
    place = _trial_places(workers, cluster)
    watcher = SearchWatcher()
    found = tune_recipe(asked, out=folder, workers=place, on_trial=watcher.trial_ended)
    if as_json:
        print_json(found)
    else:
        watcher.print_table(found)
        if found.ended != "all trials":
            click.echo(
                f"{found.ended} after {len(found.trials)} of {found.planned} trials; "
                "the same command goes on"
            )
        for name in (PICTURE, BEST):
            if (folder / name).exists():
                click.echo(folder / name)
    if found.ended == "interrupted":
        raise SystemExit(130)  # what a shell expects after Ctrl-C


@cli.command()
@data_options
@click.option(
    "--network",
    required=True,
    help="mlp, lenet_300_100, lenet_5, resnet_8, mobilenet_v1, ds_cnn, autoencoder, keras:PATH or "
    "module:function.",
)
@trust_option
@fit_options
@living_options
@worker_options
@out_option("model.keras")
@json_option
def train(network: str, trust_code: bool, out: Path, as_json: bool, **options: Any) -> None:
    """Train a network; write it as a Keras file with its record beside it.

    Each epoch is a line of MODEL.epochs.csv. A training that was cut off goes on where it was when
    the same command is given again, to the very weights of one that was not.

    \b
    lightship train --data mnist-sample --network lenet_5 --epochs 5 --out lenet.keras
    lightship train --data mnist-sample --network lenet_5 --schedule one_cycle \\
        --optimizer sgd --learning-rate 0.1 --set regularise.dropout=0.3 --out lenet.keras
    lightship train --data diabetes --task regression --network mlp --batch-size 32
    lightship train --data mnist-sample --network lenet_5 --local-workers 2 --out lenet.keras
    """
    from compress.artifacts import require_place, save_keras
    from compress.networks import parse_network
    from compress.pipeline import baseline, baseline_step, training_key
    from compress.train.distribute import WorkerLostError, begin_again, joined

    require_place(out, suffix=".keras")
    chosen, fit, seed = (
        parse_network(network, trust_code=trust_code),
        _fit(options),
        options["seed"],
    )
    cluster = _cluster(options)
    first = cluster is None or cluster.index == 0
    task, step = _task(options), baseline_step(chosen, fit)
    about = training_key({"step": step, "data": task.digest, "seed": seed})
    timeout = options["worker_timeout"]
    with (
        _resumable(out, step, options, keep=first) as files,
        _watching(out, epochs=fit.epochs) if first else contextlib.nullcontext() as watcher,
    ):
        on_epoch = watcher.epoch_ended if watcher is not None else None
        try:
            with joined(cluster, about=about, timeout_seconds=timeout) as worker:
                model, _ = baseline(
                    chosen, fit, task, seed=seed, on_epoch=on_epoch, files=files, worker=worker
                )
                weights = model.get_weights()
        except WorkerLostError as error:
            click.echo(f"{error}; waiting for it {timeout:g} s", err=True)
            begin_again()
        if worker.accelerators > 1:
            step["shared"] = worker.record(batch_size=fit.batch_size)
            model, _ = baseline(chosen, None, task, seed=seed)  # one that is mirrored nowhere
            model.set_weights(weights)
        if first:
            artifact = save_keras(model, out, _describe(task, step), seed=seed, notes={})
    if first:
        _done(out, artifact, as_json=as_json)
    else:
        click.echo(f"worker {worker.index}: done; worker 0 writes the model", err=True)


@cli.command("find-learning-rate")
@data_options
@click.option("--network", required=True, help="As for train.")
@trust_option
@fit_options
@click.option("--lowest", type=float, default=1e-6, show_default=True, help="The first rate.")
@click.option("--highest", type=float, default=10.0, show_default=True, help="The last rate.")
@click.option("--steps", type=int, default=150, show_default=True, help="How many in between.")
@click.option(
    "--out", type=FILE, help="Draw the curve there: .svg, .png or .pdf (needs the extra 'report')."
)
@json_option
def find_learning_rate(
    network: str,
    trust_code: bool,
    lowest: float,
    highest: float,
    steps: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Try learning rates from low to high in one short training; suggest one.

    \b
    lightship find-learning-rate --data mnist-sample --network lenet_5 --out rates.svg
    """
    from compress.artifacts import replace_file
    from compress.networks import build, parse_network
    from compress.train.find_rate import draw_rate_curve, find_learning_rate

    if out is not None and out.suffix not in {".svg", ".png", ".pdf"}:
        raise UserError(f"--out: must end in .svg, .png or .pdf, got {out}")
    chosen, fit = parse_network(network, trust_code=trust_code), _fit(options)
    task, seed = _task(options), options["seed"]
    model = build(chosen, input_shape=task.input_shape, classes=len(task.labels), seed=seed)
    curve = find_learning_rate(
        model, task, fit, seed=seed, lowest=lowest, highest=highest, steps=steps
    )
    if out is not None:
        replace_file(out, lambda aside: draw_rate_curve(curve, aside))
    if as_json:
        print_json(curve)
        return
    click.echo(
        f"suggestion {curve.suggestion:.2g}: there the loss falls fastest; "
        f"it rises beyond {curve.largest:.2g}" + (f"  {out}" if out else "")
    )


@cli.command()
@click.argument("model", type=FILE)
@data_options
@click.option("--final-sparsity", type=float, default=0.5, show_default=True, help="A fraction.")
@click.option("--skip", multiple=True, metavar="LAYER", help="Leave a layer alone; * matches.")
@trust_option
@fit_options
@living_options
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
    with (
        _resumable(out, step, options) as files,
        _watching(out, epochs=step.fine_tune.epochs) as watcher,
    ):
        pruned, _ = keras_step(
            original, step, task, seed=seed, on_epoch=watcher.epoch_ended, files=files
        )
        about = _describe(task, step, parent=model)
        notes = reasons_left_alone(original, step, pruned)
        artifact = save_keras(pruned, out, about, seed=seed, notes=notes)
    _done(out, artifact, as_json=as_json)


@cli.command()
@click.argument("model", type=FILE)
@data_options
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "tflite"]),
    default="onnx",
    show_default=True,
    help="For ONNX Runtime, or for LiteRT.",
)
@click.option("--opset", type=int, help="For onnx: version of the operator set.")
@click.option(
    "--form",
    type=click.Choice(["float", "dynamic", "int8"]),
    help="For tflite: what it computes in.  [default: float]",
)
@trust_option
@click.option("--out", type=FILE, help="Where the result goes.  [default: model.FORMAT]")
@json_option
def export(
    model: Path,
    kind: str,
    opset: int | None,
    form: str | None,
    trust_code: bool,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn a Keras MODEL into ONNX or LiteRT with the same numbers, proven on samples of the data.

    The forms dynamic and int8 of LiteRT round: evaluate says what that costs.

    \b
    lightship export pruned.keras --data mnist-sample --out pruned.onnx
    lightship export pruned.keras --data mnist-sample --format tflite --form int8 --out int8.tflite
    """
    if (form is not None and kind == "onnx") or (opset is not None and kind == "tflite"):
        raise UserError("lightship export: --form is for --format tflite, --opset for onnx")
    place = out or Path(f"model.{kind}")
    if kind == "tflite":
        _export_tflite(model, form or "float", place, options, trust_code=trust_code, json=as_json)
    else:
        _export_onnx(model, opset, place, options, trust_code=trust_code, json=as_json)


def _export_tflite(
    model: Path, form: str, out: Path, options: dict[str, Any], *, trust_code: bool, json: bool
) -> None:
    from compress.artifacts import require_place, save_tflite
    from compress.networks import load_keras
    from compress.steps import LiteRtStep, litert_step, reasons_left_alone

    require_place(out, suffix=".tflite", other_than=model)
    step = _convert({"kind": "litert", "form": form}, LiteRtStep)
    task = _task(options, like=model)
    content = litert_step(load_keras(model, trust_code=trust_code), step, task)
    about = _describe(task, step, parent=model)
    notes = reasons_left_alone(None, step, content)
    _done(out, save_tflite(content, out, about, seed=options["seed"], notes=notes), as_json=json)


def _export_onnx(
    model: Path,
    opset: int | None,
    out: Path,
    options: dict[str, Any],
    *,
    trust_code: bool,
    json: bool,
) -> None:
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
    _done(out, save_onnx(exported, out, about, seed=options["seed"], notes={}), as_json=json)


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
@trust_model_option
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
    trust_model: bool,
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
    from deploy.record import SessionOptions

    require_place(out, suffix=".onnx", other_than=model)
    require_harmless_models(trust_model, SessionOptions(), model)
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


def _trial_places(workers: int | None, cluster: str | None) -> Callable[[Any], Any]:
    """Return what makes those who carry out trials, given what a trial is."""
    from compress.train.workers import InThisProcess, Processes

    if cluster is not None:
        from compress.train.on_ray import OnRay

        return lambda trial: OnRay(trial, address=cluster, most=workers)
    if workers is None or workers == 1:
        return InThisProcess
    return lambda trial: Processes(trial, workers)


def _folders(
    recipe: Recipe, out: Path | None, store: Path | None, *, seed: int | None
) -> tuple[Path, Path]:
    """Return the run folder and the store; another seed than the recipe's gets its own folder."""
    name = recipe.name if seed is None else f"{recipe.name}-seed-{seed}"
    folder = out or Path("runs") / name
    return folder, store or folder.parent / ".store"


def _run(
    recipe: Recipe,
    name: str,
    *,
    out: Path,
    store: Path,
    remeasure: bool,
    as_json: bool,
    tensorboard: Path | None = None,
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
            tensorboard=tensorboard,
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
    found = {name: Store(store).find(stage.model_key) for name, stage in stages.items()}
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
        like: a model whose preprocessing and task are to be kept; None for a new model.

    Raises:
        UserError: if the model says nothing of its preprocessing and neither do the options.
    """
    with needs_extra("compress"):
        from compress.artifacts import goal_of, preprocess_of
        from compress.data.sources import Data
        from compress.data.splits import load_task

    names = ("source", "categorical", "image_size", "train_samples", "task", "metric")
    given = {name: options[name] for name in names if options[name] is not None}
    for name, kind in (("clean", dict[str, Any]), ("augment", list[Any])):
        if options[name] is not None:
            given[name] = _json_value(name, options[name], kind)
    given |= _asked_labels(options)
    said = goal_of(like) if like is not None else None
    if said is not None:
        given.setdefault("task", said.task)
        if said.task == given["task"]:
            given |= {"metric": given.get("metric", said.metric), "unit": said.unit}
    asked = options["preprocess"]
    if asked == "none":
        given["preprocess"] = []
    elif asked not in {None, "default"}:
        given["preprocess"] = _json_list(asked)
    elif asked is None and like is not None:
        given["preprocess"] = preprocess_of(like)
    task = load_task(_convert(given, Data), seed=options["split_seed"])
    for note in task.notes:
        click.echo(f"warning: {note}", err=True)
    return task


def _asked_labels(options: dict[str, Any]) -> dict[str, Any]:
    """Return what the options say of labels, as keys of ``[data]``."""
    columns, normal = options["label_column"], options["normal"]
    given: dict[str, Any] = {"normal": normal} if normal else {}
    if len(columns) == 1:
        given["label_column"] = columns[0]
    elif columns:
        given["label_columns"] = columns
    return given


def _json_value(name: str, text: str, kind: Any) -> Any:
    """Return what a JSON text spells out for an option."""
    import msgspec

    try:
        return msgspec.json.decode(text.encode(), type=kind)
    except msgspec.DecodeError as error:
        raise UserError(
            f"--{name}: must be JSON as in data.{name} of a recipe ({error}), got {text!r}"
        ) from error


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
    given = {name: options[name] for name in ("epochs", "batch_size")}
    if options["loss"] is not None:
        given["loss"] = {"kind": options["loss"]}
    stopping = {"early_stopping": {"patience": patience}} if patience else {}
    warmup = options["warmup_epochs"]
    schedule = {
        "kind": options["schedule"] or "constant",
        **({"warmup_epochs": warmup} if warmup is not None else {}),
    }
    table = {**given, "optimizer": optimizer, "schedule": schedule, **stopping}
    for setting in options["settings"]:
        _set(table, setting)
    fit: Fit = _convert(table, Fit)
    return fit


def _set(table: dict[str, Any], setting: str) -> None:
    """Put ``KEY=VALUE`` into nested tables: dots lead into a table, values are TOML or plain text."""
    import msgspec

    key, equals, text = setting.partition("=")
    *path, name = key.strip().split(".")
    if not equals or not all((*path, name)):
        raise UserError(f"--set: needs KEY=VALUE such as optimizer.momentum=0.9, got {setting!r}")
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise UserError(f"--set: {part!r} in {key!r} is a value, not a table")
    try:
        table[name] = msgspec.toml.decode(f"value = {text}")["value"]
    except msgspec.DecodeError:
        table[name] = text


def _cluster(options: dict[str, Any]) -> Cluster | None:
    """Return who trains together, None for this process alone; train here if that is asked for."""
    from compress.train.distribute import Cluster, read_tf_config, train_on_this_machine

    workers, index, local = (options[name] for name in ("workers", "index", "local_workers"))
    if (workers is None) != (index is None):
        raise UserError("--workers and --index go together: who trains, and which of them this is")
    if workers is not None and local:
        raise UserError("--local-workers: finds addresses by itself; leave --workers out")
    if local:
        say = partial(click.echo, err=True)
        click.get_current_context().exit(train_on_this_machine(local, say))
    if workers is not None:
        return Cluster(workers=tuple(workers.split(",")), index=index)
    config = os.environ.get("TF_CONFIG")
    return read_tf_config(config) if config else None


@contextlib.contextmanager
def _resumable(
    out: Path, step: Any, options: dict[str, Any], *, keep: bool = True
) -> Iterator[TrainingFiles]:
    """Yield where a training keeps what it needs to go on, beside its result; tidy up at the end.

    Nothing is written or removed if not ``keep``: another worker does.
    """
    from compress.pipeline import training_key
    from compress.train.fit import TrainingFiles

    checkpoint, key = out.with_name(f"{out.name}.unfinished"), training_key(_builtins(step))
    if not keep:
        yield TrainingFiles(checkpoint=checkpoint, key=key)
        return
    if options["restart"]:
        checkpoint.unlink(missing_ok=True)
    if checkpoint.exists():
        click.echo(f"{checkpoint}: going on where it was, if the command is the same", err=True)
    try:
        yield TrainingFiles(
            checkpoint=checkpoint,
            key=key,
            csv=out.with_suffix(".epochs.csv"),
            tensorboard=options["tensorboard"],
        )
    except KeyboardInterrupt:
        how = "goes on where it was" if checkpoint.exists() else "begins anew"
        click.echo(f"stopped; the same command {how}", err=True)
        click.get_current_context().exit(130)
    checkpoint.unlink(missing_ok=True)


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
