"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from deploy.cli.options import (
    FILE,
    FOLDER,
)

# Everything but click is imported inside the commands: --help answers at once.


Command = TypeVar("Command", bound=Callable[..., Any])


class _Pixels(click.IntRange):
    """One of the two lengths of an image."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Say how both are given: click's own words are about numbers alone."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            self.fail(f"give height and width, such as 96 96; got {value!r}", param, ctx)


seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True
)


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
            type=_Pixels(min=1),
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


def teacher_options(command: Command) -> Command:
    """Add the options of who teaches a fine-tuning."""
    options = (
        click.option(
            "--teacher",
            type=FILE,
            help="The Keras model whose answers it listens to.  [default: MODEL itself]",
        ),
        click.option(
            "--distill/--no-distill",
            default=None,
            help="Whether it listens to a teacher.  [default: as the step does in a recipe]",
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


def options_of(decorate: Callable[[Any], Any]) -> list[click.Parameter]:
    """Return the options that such a function as ``fit_options`` adds."""
    command = click.Command("of no use")
    decorate(command)
    return command.params


def is_given(option: click.Parameter) -> bool:
    """Return whether an option stands on the command line that is carried out."""
    source = click.get_current_context().get_parameter_source(option.name or "")
    return source is ParameterSource.COMMANDLINE


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


calibration_option = click.option(
    "--calibration",
    type=click.Choice(["minmax", "moving_average", "entropy", "percentile", "mse", "auto"]),
    help="How int8 ranges are found; auto tries all.  [default: minmax]",
)


trust_option = click.option(
    "--trust-code", is_flag=True, help="Run code that a model file carries, such as a Lambda layer."
)
