"""What the options of a command ask for: data, a training, workers."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.errors import UserError, needs_extra

# Everything but click is imported inside the commands: --help answers at once.
if TYPE_CHECKING:
    from compress.data.task import Task
    from compress.train.distribute import Cluster
    from compress.train.fit import Fit


def task_asked(options: dict[str, Any], *, like: Path | None = None) -> Task:
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
    task = load_task(checked(given, Data), seed=options["split_seed"])
    for note in task.notes:
        click.echo(f"warning: {note}", err=True)
    return task


def file_named(what: str | None) -> Path | None:
    """Return the file of a ``KIND:PATH``, if it is one; what is read is never written over."""
    place = Path((what or "").partition(":")[2])
    return place if place.is_file() else None


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


def fit_asked(options: dict[str, Any]) -> Fit:
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
    fit: Fit = checked(table, Fit)
    return fit


def distill_asked(options: dict[str, Any]) -> dict[str, Any]:
    """Return what ``teacher_options`` say of a step's key ``distill``, which may be nothing."""
    if options["distill"] is False and options["teacher"] is not None:
        raise UserError("--teacher and --no-distill exclude each other; leave one out")
    if options["distill"] is None and options["teacher"] is None:
        return {}
    return {"distill": options["distill"] is not False}


def teacher_asked(options: dict[str, Any], original: Any, *, trust_code: bool) -> Any:
    """Return the tf-keras model that ``teacher_options`` name: the original if none."""
    from compress.networks import load_keras

    path = options["teacher"]
    return original if path is None else load_keras(path, trust_code=trust_code)


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


def cluster_asked(options: dict[str, Any]) -> Cluster | None:
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


def checked(value: dict[str, Any], kind: Any) -> Any:
    """Check options as a recipe's keys would be checked."""
    from compress.decode import decode

    return decode(value, kind, where=f"lightship {click.get_current_context().info_name}")


def builtins_of(value: Any) -> Any:
    """Return a record as dicts and lists."""
    import msgspec

    return msgspec.to_builtins(value)
