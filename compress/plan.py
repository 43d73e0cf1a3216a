"""What a recipe comes to: its stages, and the keys under which their results are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compress.artifacts import stack_versions
from compress.baseline import baseline, digest_of_what_the_user_brings
from compress.data.task import Task
from compress.prune.channels import Faster, PruneChannels
from compress.prune.clusters import Cluster
from compress.prune.distill import Distill
from compress.prune.low_rank import BySpeed, LowRank
from compress.quantize.aware import QuantizeAware
from compress.quantize.fold import FoldBatchNorm
from compress.quantize.layout import Int8Layout
from compress.quantize.mixed import QuantizeMixed
from compress.quantize.static import QuantizeStatic
from compress.quantize.width_to_depth import check_columns
from compress.recipe import BASELINE, Recipe
from compress.steps import (
    KerasStep,
    LiteRtStep,
    Step,
    check_layer_names,
    distillation_of,
    epochs_of,
    int8_of_these_shapes,
    leaves_known_shapes,
    without_named,
)
from compress.store import code_digest, key_of
from deploy.errors import UserError
from deploy.litert import litert_version
from deploy.machine import this_environment, this_target
from deploy.widths import read_widths

_ONNX, _TFLITE = "model.onnx", "model.tflite"

TRAINING_CODE = (
    "compress/baseline.py",
    "compress/data",
    "compress/networks",
    "compress/train",
    "deploy/preprocess.py",
)
"""What makes a baseline; a change of how variants come from it costs no baseline."""
STEP_CODE = (*TRAINING_CODE, "compress/prune")
"""What makes a Keras model from another."""
_EXPORT_CODE = (
    "compress/export",
    "deploy/graph.py",
    "compress/artifacts.py",
    "compress/steps.py",
)
_LITERT_CODE = (*_EXPORT_CODE, "deploy/tflite.py", "deploy/litert.py")
_SCHEMES = ("compress/quantize", "deploy/kernels.py", "deploy/machine.py")
_OPENING_CODE = ("deploy/session.py", "deploy/probes.py", "deploy/machine.py")
"""What chooses the kernels that a model is judged and timed with."""
_JUDGING_CODE = (
    "deploy/evaluate.py",
    "deploy/goals.py",
    "deploy/intervals.py",
    "deploy/metrics.py",
    *_OPENING_CODE,
)
_QUANTIZE_CODE = (*_EXPORT_CODE[1:], *_SCHEMES, *_JUDGING_CODE)
RUNNING_CODE = (*_OPENING_CODE, "deploy/binding.py", "deploy/litert.py", "deploy/tflite.py")
BENCH_CODE = (*RUNNING_CODE, "deploy/bench.py", "deploy/bench_child.py", "deploy/memory.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One variant of a recipe and the keys under which its models are kept.

    Attributes:
        parent: the variant it comes from; None for the baseline.
        step: what makes it; None for the baseline.
        keras_key: key of its Keras model; None after an ONNX step.
        model_key: key of the model that ships.
        file: the name of that model's file, by whose ending its format is known.
        epochs: epochs of training that making it takes.
    """

    name: str
    parent: str | None
    step: Step | None
    keras_key: str | None
    model_key: str
    file: str
    epochs: int


def plan(recipe: Recipe, task: Task) -> dict[str, Stage]:
    """Return the stages of a recipe by variant name, in the order in which they run.

    A key covers everything that determines the result: the step, its parent's key, the data, the
    seed, the versions of the stack and our own code that makes it.
    """
    data = {"samples": task.digest, "name": task.name, "licence": task.licence, "goal": task.goal}
    common = {"data": data, "seed": recipe.seed, "versions": stack_versions()}
    training = {**common, "code": code_digest(*TRAINING_CODE)}
    stepping = {**common, "code": code_digest(*STEP_CODE)}
    exporting = {**common, "code": code_digest(*_EXPORT_CODE)}
    converting = {**common, "litert": litert_version(), "code": code_digest(*_LITERT_CODE)}
    quantizing = {**common, "code": code_digest(*_QUANTIZE_CODE)}

    def onnx_of(keras_key: str, step: Step | None) -> str:
        # What trains for int8 is written by the code that quantizes.
        writing = (
            {**exporting, "quantize": quantizing} if isinstance(step, QuantizeAware) else exporting
        )
        return key_of({"export": recipe.export, "parent": keras_key, **writing})

    brought = digest_of_what_the_user_brings(recipe.network, task, seed=recipe.seed)
    trained = key_of(
        {"network": recipe.network, "brought": brought, "train": recipe.train, **training}
    )
    stages = {
        BASELINE: Stage(
            name=BASELINE,
            parent=None,
            step=None,
            keras_key=trained,
            model_key=onnx_of(trained, None),
            file=_ONNX,
            epochs=recipe.train.epochs if recipe.train else 0,
        )
    }
    for variant in recipe.variants:
        parent, step = stages[variant.parent], variant.step
        keras_key, file = None, _ONNX
        if isinstance(step, KerasStep):
            made = {
                "step": step,
                "parent": parent.keras_key,
                **stepping,
                **_known_to(step, recipe, task),
            }
            if distillation_of(step) is not None:
                made |= {"teacher": trained}
            keras_key = key_of(made)
            model_key = onnx_of(keras_key, step)
        elif isinstance(step, LiteRtStep):
            file = _TFLITE
            model_key = key_of({"step": step, "parent": parent.keras_key, **converting})
        else:
            # A step that names no target aims at this machine, so the machine is part of the key.
            target = this_target()
            made = {"step": step, "parent": parent.model_key, "target": target}
            if isinstance(step, QuantizeMixed | Int8Layout):
                made |= _timed_here()
            model_key = key_of({**made, **quantizing})
        stages[variant.name] = Stage(
            name=variant.name,
            parent=variant.parent,
            step=step,
            keras_key=keras_key,
            model_key=model_key,
            file=file,
            epochs=epochs_of(step),
        )
    return stages


def _known_to(step: KerasStep, recipe: Recipe, task: Task) -> dict[str, object]:
    """Return what determines a step's result beside its parent, the data and the training code."""
    made: dict[str, object] = {}
    if isinstance(step, QuantizeAware | FoldBatchNorm | Cluster):
        made |= {"target": this_target(), "quantize": code_digest(*_SCHEMES)}
    if isinstance(step, PruneChannels) and step.widths is not None:
        steps = code_digest("deploy/widths.py")
        made |= {"widths": read_widths(Path(step.widths.table)), "steps": steps}
    if (isinstance(step, PruneChannels) and isinstance(step.target, Faster)) or (
        isinstance(step, LowRank) and isinstance(step.by, BySpeed)
    ):
        made |= _timed_here()
    if isinstance(step, Distill) and step.network is not None:
        seed, network = recipe.seed, step.network
        made |= {"brought": digest_of_what_the_user_brings(network, task, seed=seed)}
    return made


def _timed_here() -> dict[str, object]:
    """Return the parts of a key on which a step depends that times models on this machine."""
    machine = msgspec.structs.replace(this_environment(), load_average=None)
    return {"machine": machine, "timing": code_digest(*BENCH_CODE, "deploy/audit")}


def check_names(recipe: Recipe, task: Task, stages: Mapping[str, Stage]) -> None:
    """Refuse steps that name layers which the recipe's network does not have, or columns that do not fit.

    Columns are looked at where the shapes of the network are known before it is trained.

    Raises:
        UserError: with the variant's name in front.
    """
    network, _ = baseline(recipe.network, None, task, seed=recipe.seed)
    models, shaped, twins = {BASELINE: network}, {BASELINE}, dict[str, Any]()
    for stage in stages.values():
        if stage.step is None or stage.parent is None:
            continue
        parent = models[stage.parent]
        with naming(stage.name):
            check_layer_names(parent, stage.step, teacher=network)
            models[stage.name] = without_named(parent, stage.step)
            if isinstance(stage.step, Distill) and stage.step.network is not None:
                models[stage.name], _ = baseline(stage.step.network, None, task, seed=recipe.seed)
        if stage.parent in shaped and leaves_known_shapes(stage.step):
            shaped.add(stage.name)
        if isinstance(stage.step, Int8Layout) and stage.step.columns != "auto":
            made_by = stages[stage.parent]
            step, given = made_by.step, made_by.parent
            if given in shaped and isinstance(step, QuantizeStatic | QuantizeAware):
                if made_by.name not in twins:
                    with naming(made_by.name):
                        int8 = int8_of_these_shapes(models[given], step, recipe.export, task)
                    twins[made_by.name] = int8
                with naming(stage.name):
                    check_columns(twins[made_by.name], stage.step.columns)


def training_key(step: Any, *, rooms: Sequence[str] = STEP_CODE) -> str:
    """Return what tells the checkpoint of one training step from those of others.

    The loop itself looks at the settings, the data and the weights that it begins with.

    Args:
        step: what is trained, and how.
        rooms: the code that does it.
    """
    code = code_digest(*rooms)
    return key_of({"step": step, "versions": stack_versions(), "code": code})


@contextlib.contextmanager
def naming(variant: str) -> Iterator[None]:
    """Put the variant's name in front of a mistake that shows while it is made."""
    try:
        yield
    except UserError as error:
        raise UserError(f"variant {variant!r}: {error}") from error
