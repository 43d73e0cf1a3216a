"""``lightship train``, ``find-learning-rate`` and ``evalset``: a baseline and what it is measured on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from compress.cli.asked import (
    cluster_asked,
    file_named,
    fit_asked,
    task_asked,
)
from compress.cli.one_step import description, resumable, say_done, watching
from compress.cli.options import (
    data_options,
    fit_options,
    living_options,
    out_option,
    trust_option,
    worker_options,
)
from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE,
    json_option,
    require_picture,
    require_place,
)

# Everything but click is imported inside the commands: --help answers at once.


@click.command()
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
    from compress.artifacts import save_keras
    from compress.baseline import baseline, baseline_step, with_weights
    from compress.networks import parse_network
    from compress.plan import TRAINING_CODE, training_key
    from compress.train.distribute import WorkerLostError, begin_again, joined

    require_place("--out", out, file_named(network), suffixes=[".keras"])
    chosen, fit, seed = (
        parse_network(network, trust_code=trust_code),
        fit_asked(options),
        options["seed"],
    )
    cluster = cluster_asked(options)
    first = cluster is None or cluster.index == 0
    task, step = task_asked(options), baseline_step(chosen, fit)
    about = training_key({"step": step, "data": task.digest, "seed": seed}, rooms=TRAINING_CODE)
    timeout = options["worker_timeout"]
    with (
        resumable(out, step, options, keep=first) as files,
        watching(out, epochs=fit.epochs) if first else contextlib.nullcontext() as watcher,
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
            model = with_weights(chosen, task, weights, seed=seed)
        if first:
            artifact = save_keras(model, out, description(task, step), seed=seed, notes={})
    if first:
        say_done(out, artifact, as_json=as_json)
    else:
        click.echo(f"worker {worker.index}: done; worker 0 writes the model", err=True)


@click.command("find-learning-rate")
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
    from compress.networks import parse_network
    from compress.train.find_rate import draw_rate_curve, find_learning_rate
    from compress.train.trainable import network_for

    require_picture("--out", out)
    chosen, fit = parse_network(network, trust_code=trust_code), fit_asked(options)
    task, seed = task_asked(options), options["seed"]
    model = network_for(task, chosen, seed=seed)
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


@click.command()
@data_options
@out_option("test.npz")
def evalset(out: Path, **options: Any) -> None:
    """Write the test samples of a data set to a file, for ``evaluate`` here or on a device.

    \b
    lightship evalset --data mnist-sample --out test.npz
    """
    from compress.artifacts import replace_file
    from deploy.evalset import EvalSet

    require_place("--out", out, file_named(options["source"]))
    test = task_asked(options).test
    replace_file(out, EvalSet(x=test.raw, y=test.y).save)
    click.echo(f"{out}  {len(test):,} samples")
