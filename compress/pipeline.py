"""Runs a recipe: makes every variant, measures them together, writes the report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from compress.artifacts import (
    describe,
    replace_file,
    save_keras,
    save_onnx,
    save_tflite,
    stack_versions,
)
from compress.baseline import baseline, baseline_step
from compress.data.splits import load_task
from compress.data.task import Task
from compress.networks import KerasFile, load_keras
from compress.plan import BENCH_CODE, RUNNING_CODE, Stage, check_names, naming, plan
from compress.prune.distill import Distill
from compress.quantize.aware import QuantizeAware
from compress.quantize.dynamic import QuantizeDynamic
from compress.quantize.layout import Int8Layout
from compress.quantize.lint import lint_calibration
from compress.quantize.mixed import QuantizeMixed
from compress.quantize.plots import plot_search
from compress.quantize.static import QuantizeStatic
from compress.recipe import BASELINE, Recipe, to_toml
from compress.steps import (
    KerasStep,
    LiteRtStep,
    OnnxStep,
    as_carried_out,
    check_model,
    distillation_of,
    exported,
    keras_step,
    litert_step,
    onnx_step,
    reasons_left_alone,
    require_kept,
)
from compress.store import Store, code_digest, key_of
from compress.train.fit import EpochEnd, History, TrainingFiles
from deploy.audit import audit
from deploy.bench import bench
from deploy.bundle.make import bundle_run
from deploy.errors import UserError, needs_extra
from deploy.evalset import EvalSet
from deploy.evaluate import answers_of, compare, evaluate
from deploy.kernels import why_not_int8
from deploy.machine import this_environment, this_target
from deploy.packing.weigh import packed_sizes
from deploy.record import (
    Comparison,
    Measurement,
    notes_beside,
    read_record,
    record_path,
    sha256_of,
)
from deploy.report import write_report
from deploy.report.build import Finished, build_results
from deploy.report.results import Data, Reproduce, Results, Training, read_results
from deploy.report.verdict import best_variant
from deploy.session import ModelMetadata, open_model

_KERAS, _ONNX, _TFLITE = "model.keras", "model.onnx", "model.tflite"
_HISTORY, _EPOCHS, _MEASUREMENT = "history.json", "epochs.csv", "measurement.json"
_SEARCH, _PICTURE, _FINDINGS = "search.json", "search.svg", "calibration.json"
_VARIANTS, _ANSWERS = "variants", "answers.npy"
BEST = "best.lship"
"""The bundle of the verdict's choice, in the run folder."""


class Watcher(Protocol):
    """Hears how a run gets on."""

    def begins(self, variant: str, *, epochs: int) -> None:
        """A variant is being made; so many epochs of training lie ahead."""

    def epoch_ended(self, epoch: EpochEnd) -> None:
        """One epoch of the variant's training is over."""

    def ended(self, variant: str, *, reused: bool) -> None:
        """The variant is there; ``reused`` says that an earlier run had made it."""

    def search_advanced(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` parts of one stage of a variant's search are over."""

    def bench_advanced(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts of the latency measurement are over."""


def run(
    recipe: Recipe,
    *,
    out: Path,
    store: Store,
    watcher: Watcher,
    command: str,
    now: datetime,
    remeasure: bool = False,
    tensorboard: Path | None = None,
) -> Results:
    """Make every variant, measure them all together, and write the report into ``out``.

    Finished steps are taken from ``store``, so a run that was cut off goes on where it was.

    Args:
        recipe: what to do.
        out: the run folder; holds ``report.html``, ``results.json``, ``recipe.toml``, ``test.npz``,
            one folder per variant under ``variants/`` and ``best.lship``, the bundle of the
            verdict's choice, if there is one.
        store: where finished steps are kept.
        watcher: hears how the run gets on.
        command: the command line that reproduces the run, for the report.
        now: when the run is made, for the report.
        remeasure: time all models again, even if this very set was timed on this machine before.
        tensorboard: where logs of the trainings go, a folder per variant; None writes none.

    Raises:
        UserError: if the recipe does not fit its data or its network.
        ParityError: if an export changed the numbers.
    """
    task = load_task(recipe.data, seed=recipe.seed)
    making = _Making(
        recipe=recipe,
        task=task,
        store=store,
        watcher=watcher,
        stages=plan(recipe, task),
        tensorboard=tensorboard,
    )
    making.check()
    folders = {name: making.model(stage) for name, stage in making.stages.items()}
    finished = making.finished(folders)
    results = build_results(
        finished,
        measurement=making.measurement(making.files(folders), now=now, again=remeasure),
        environment=this_environment(),
        session=recipe.bench.session,
        data=_data_facts(task),
        name=recipe.name,
        title=recipe.title or recipe.name,
        description=recipe.description,
        lightship=metadata.version("lightship"),
        created=now.isoformat(timespec="seconds"),
        reproduce=Reproduce(command=command, recipe=to_toml(recipe)),
        history=making.histories(),
        goal=task.goal,
        warnings=[*task.notes, *_warnings(recipe), *making.findings(folders)],
    )
    (out / BEST).unlink(missing_ok=True)  # an earlier run's choice
    making.publish(folders, out)
    write_report(results, out)
    best = best_variant(results)
    if best is not None:
        bundle_run(out, out / BEST, variant=best.name)
    return results


@dataclass(frozen=True, slots=True, kw_only=True)
class _Making:
    """One recipe being carried out."""

    recipe: Recipe
    task: Task
    store: Store
    watcher: Watcher
    stages: dict[str, Stage]
    tensorboard: Path | None

    def check(self) -> None:
        """Refuse now what would be refused only after hours of training."""
        with needs_extra("report"):
            import jinja2  # noqa: F401  # the report comes last; what it needs is asked first
            import matplotlib.figure  # noqa: F401  # likewise
        if any(isinstance(stage.step, LiteRtStep) for stage in self.stages.values()):
            with needs_extra("litert"):
                import ai_edge_litert  # noqa: F401  # likewise
        if not all(self.store.find(stage.model_key) for stage in self.stages.values()):
            check_names(self.recipe, self.task, self.stages)

    def model(self, stage: Stage) -> Path:
        """Return the folder of the model of a stage that ships; make it if it is not there yet."""
        found = self.store.find(stage.model_key)
        if found is not None:
            self.watcher.ended(stage.name, reused=True)
            return found
        self.watcher.begins(stage.name, epochs=stage.epochs)
        # A Keras model is kept before it is exported: a kill in between costs no training.
        make = self._export if stage.keras_key else self._quantize
        if isinstance(stage.step, LiteRtStep):
            make = self._convert
        with naming(stage.name):
            folder = self.store.add(stage.model_key, lambda aside: make(stage, aside))
        self.watcher.ended(stage.name, reused=False)
        return folder

    def _keras(self, stage: Stage) -> Path:
        """Return the folder of a stage's Keras model; make it if it is not there yet."""
        if stage.keras_key is None:
            raise ValueError(f"{stage.name} has no Keras model")
        return self.store.find(stage.keras_key) or self.store.add(
            stage.keras_key, lambda aside: self._train(stage, aside)
        )

    @property
    def _trusted(self) -> bool:
        """Whether the user's network may carry code, which its children then carry too."""
        steps = (stage.step for stage in self.stages.values())
        taught = (step.network for step in steps if isinstance(step, Distill))
        return any(
            isinstance(network, KerasFile) and network.trust_code
            for network in (self.recipe.network, *taught)
        )

    def _train(self, stage: Stage, folder: Path) -> None:
        """Write ``model.keras``, its record and how its training went."""
        seed, on_epoch = self.recipe.seed, self.watcher.epoch_ended
        parent: Path | None = None
        notes: dict[str, str] = {}
        history: History | None
        files = TrainingFiles(
            checkpoint=self.store.unfinished(stage.keras_key) if stage.keras_key else None,
            key=stage.keras_key or "",
            csv=folder / _EPOCHS,
            tensorboard=self.tensorboard and self.tensorboard / stage.name,
        )
        if isinstance(stage.step, KerasStep) and stage.parent:
            parent = self._keras(self.stages[stage.parent]) / _KERAS
            original = load_keras(parent, trust_code=self._trusted)
            teacher = None
            if distillation_of(stage.step) is not None:
                path = self._keras(self.stages[BASELINE]) / _KERAS
                same = path == parent
                teacher = original if same else load_keras(path, trust_code=self._trusted)
            model, history = keras_step(
                original,
                stage.step,
                self.task,
                seed=seed,
                teacher=teacher,
                on_epoch=on_epoch,
                files=files,
            )
            notes = reasons_left_alone(original, stage.step, model)
            done = msgspec.to_builtins(as_carried_out(stage.step, original, model))
        else:
            recipe = self.recipe
            model, history = baseline(
                recipe.network, recipe.train, self.task, seed=seed, on_epoch=on_epoch, files=files
            )
            done = baseline_step(recipe.network, recipe.train)
        about = self._about(done, parent)
        save_keras(model, folder / _KERAS, about, seed=seed, notes=notes)
        (folder / _HISTORY).write_bytes(msgspec.json.encode(history))

    def _export(self, stage: Stage, folder: Path) -> None:
        """Write ``model.onnx`` of a Keras stage, with the numbers of Keras, and its record."""
        keras = self._keras(stage) / _KERAS
        made = load_keras(keras, trust_code=self._trusted)
        model, agreement = exported(made, stage.step, self.recipe.export, self.task)
        trained = read_record(keras)
        notes = notes_beside(keras)
        if isinstance(stage.step, QuantizeAware):
            notes |= why_not_int8(model, target=this_target())
        parent = self._parent_onnx(stage)
        about = self._about(trained.step, parent)
        record = save_onnx(
            model,
            folder / _ONNX,
            about,
            seed=self.recipe.seed,
            notes=notes,
            keras_agreement=agreement,
        )
        require_kept(record, stage.step, read_record(parent) if parent else None)

    def _quantize(self, stage: Stage, folder: Path) -> None:
        """Write what an ONNX step makes of its parent, and its record."""
        import onnx

        parent = self._parent_onnx(stage)
        if parent is None or not isinstance(stage.step, OnnxStep):
            raise ValueError(f"{stage.name} is not an ONNX stage")
        original, seed = onnx.load(str(parent)), self.recipe.seed
        check_model(original, stage.step)
        if isinstance(stage.step, QuantizeStatic | QuantizeMixed):
            findings = lint_calibration(original, self.task)
            (folder / _FINDINGS).write_bytes(msgspec.json.encode(findings))
        made = onnx_step(
            original, stage.step, self.task, seed=seed, on_search=self.watcher.search_advanced
        )
        notes = reasons_left_alone(original, made.step, made.model)
        if isinstance(made.step, Int8Layout):
            notes = notes_beside(parent) | notes
        about = self._about(msgspec.to_builtins(made.step), parent)
        save_onnx(made.model, folder / _ONNX, about, seed=seed, notes=notes)
        if made.search is not None:
            (folder / _SEARCH).write_bytes(msgspec.json.format(msgspec.json.encode(made.search)))
            plot_search(made.search, folder / _PICTURE)

    def _convert(self, stage: Stage, folder: Path) -> None:
        """Write ``model.tflite`` of a stage, made of its parent's Keras model, and its record."""
        if stage.parent is None or not isinstance(stage.step, LiteRtStep):
            raise ValueError(f"{stage.name} is not a LiteRT stage")
        keras = self._keras(self.stages[stage.parent]) / _KERAS
        content = litert_step(load_keras(keras, trust_code=self._trusted), stage.step, self.task)
        notes = notes_beside(keras)
        notes |= reasons_left_alone(None, stage.step, content)
        done = msgspec.to_builtins(stage.step)
        about = self._about(done, self._parent_onnx(stage))
        save_tflite(content, folder / _TFLITE, about, seed=self.recipe.seed, notes=notes)

    def _parent_onnx(self, stage: Stage) -> Path | None:
        if stage.parent is None:
            return None
        parent = self.stages[stage.parent]
        return (self.store.find(parent.model_key) or self.model(parent)) / _ONNX

    def _about(self, step: Mapping[str, object], parent: Path | None) -> ModelMetadata:
        """Return what a stage's model says of itself.

        Args:
            step: the step that made it, as it was carried out.
            parent: the file that it was made from, if it was made from one.
        """
        return describe(self.task, step=step, parent=sha256_of(parent) if parent else None)

    def answers(self, path: Path) -> npt.NDArray[Any]:
        """Return what a model answers to the test samples, in the session that ships."""
        options = self.recipe.bench.session
        machine = msgspec.structs.replace(this_environment(), load_average=None)
        model = sha256_of(path)
        parts = {"model": model, "data": self.task.digest, "session": options, "machine": machine}
        code = code_digest(*RUNNING_CODE, "deploy/evaluate.py", "deploy/preprocess.py")
        key = key_of({"kind": "answers", **parts, "versions": stack_versions(), "code": code})

        def answer(aside: Path) -> None:
            opened = open_model(path, options)
            np.save(aside / _ANSWERS, answers_of(opened, self.task.test.raw, self.task.goal))

        found = self.store.find(key) or self.store.add(key, answer)
        answers: npt.NDArray[Any] = np.load(found / _ANSWERS, allow_pickle=False)
        return answers

    def measurement(self, models: Sequence[Path], *, now: datetime, again: bool) -> Measurement:
        """Time all models together, unless this very set was timed on this machine before.

        Args:
            models: the files, in the order of the stages.
            now: when it is measured, if it is.
            again: measure in any case.
        """
        machine = msgspec.structs.replace(this_environment(), load_average=None)
        named = {name: sha256_of(path) for name, path in zip(self.stages, models, strict=True)}
        parts = {"models": list(named.items()), "machine": machine}
        code = code_digest(*BENCH_CODE)
        key = key_of({"kind": "bench", **parts, "bench": self.recipe.bench, "code": code})

        def measure(aside: Path) -> None:
            measured = bench(
                models,
                self.recipe.bench,
                seed=self.recipe.seed,
                names=list(self.stages),
                on_progress=self.watcher.bench_advanced,
            )
            dated = msgspec.structs.replace(measured, measured_at=now.isoformat(timespec="seconds"))
            (aside / _MEASUREMENT).write_bytes(msgspec.json.encode(dated))

        if again:
            self.store.remove(key)
        found = self.store.find(key) or self.store.add(key, measure)
        return msgspec.json.decode((found / _MEASUREMENT).read_bytes(), type=Measurement)

    def files(self, folders: Mapping[str, Path]) -> list[Path]:
        """Return the models that ship, in the order of the stages."""
        return [folders[name] / stage.file for name, stage in self.stages.items()]

    def finished(self, folders: Mapping[str, Path]) -> list[Finished]:
        """Return what is known of every variant, the test samples looked at once for each."""
        y, goal = self.task.test.y, self.task.goal
        answers = {
            name: self.answers(path)
            for name, path in zip(self.stages, self.files(folders), strict=True)
        }

        def against(name: str, reference: str | None) -> Comparison | None:
            if reference is None:
                return None
            return compare(answers[name], answers[reference], y, goal)

        return [
            Finished(
                name=name,
                parent=stage.parent,
                artifact=read_record(folders[name] / stage.file),
                path=f"{_VARIANTS}/{name}/{stage.file}",
                evaluation=evaluate(answers[name], y, goal),
                against_parent=against(name, stage.parent),
                against_baseline=against(name, BASELINE if stage.parent else None),
                audit=audit(folders[name] / stage.file, self.recipe.bench.session, timed=False),
                **packed_sizes(folders[name] / stage.file),
            )
            for name, stage in self.stages.items()
        ]

    def publish(self, folders: Mapping[str, Path], out: Path) -> None:
        """Lay the run folder out: one folder per variant, the recipe and the test samples."""
        variants = out / _VARIANTS
        stale = _variants_of_the_last_run(out) - set(folders)
        # Models and results have to be of one run: better none than those of the last one.
        (out / "results.json").unlink(missing_ok=True)
        for name, folder in folders.items():
            keras_key = self.stages[name].keras_key
            keras = self.store.find(keras_key) if keras_key else None
            models = [folder / self.stages[name].file, *([keras / _KERAS] if keras else [])]
            if keras and (keras / _EPOCHS).exists():  # not of a network that came trained
                table = partial(shutil.copyfile, keras / _EPOCHS)
                replace_file(variants / name / _EPOCHS, table)
            search = [path for path in (folder / _SEARCH, folder / _PICTURE) if path.exists()]
            for name_of_last_run in {_SEARCH, _PICTURE} - {path.name for path in search}:
                (variants / name / name_of_last_run).unlink(missing_ok=True)
            for file in [f for model in models for f in (model, record_path(model))] + search:
                replace_file(variants / name / file.name, partial(shutil.copyfile, file))
        for name in stale:
            shutil.rmtree(variants / name, ignore_errors=True)
        recipe, test = to_toml(self.recipe), self.task.test
        replace_file(out / "recipe.toml", lambda aside: aside.write_text(recipe, "utf-8"))
        replace_file(out / "test.npz", EvalSet(x=test.raw, y=test.y).save)

    def findings(self, folders: Mapping[str, Path]) -> list[str]:
        """Return what is wrong with the calibration samples, each once, with who they spoil."""
        by_finding: dict[str, list[str]] = {}
        for name, folder in folders.items():
            path = folder / _FINDINGS
            found = msgspec.json.decode(path.read_bytes(), type=list[str]) if path.exists() else []
            for finding in found:
                by_finding.setdefault(finding, []).append(name)
        return [f"{', '.join(names)}: {finding}" for finding, names in by_finding.items()]

    def histories(self) -> dict[str, Training]:
        """Return how each trained variant learned, by name."""
        trained = {}
        for stage in self.stages.values():
            folder = self.store.find(stage.keras_key) if stage.keras_key else None
            text = (folder / _HISTORY).read_bytes() if folder else b"null"
            history = msgspec.json.decode(text, type=History | None)
            if history is not None:
                trained[stage.name] = Training(
                    epochs=tuple(dict(epoch) for epoch in history.epochs),
                    kept_epoch=history.kept_epoch,
                )
        return trained


def _variants_of_the_last_run(out: Path) -> set[str]:
    """Return the variants that a run folder's results name; folders of others are not ours."""
    try:
        return {variant.name for variant in read_results(out / "results.json").variants}
    except UserError:
        return set()


def _data_facts(task: Task) -> Data:
    return Data(
        name=task.name,
        licence=task.licence,
        outputs=1 if task.kind == "reconstruction" else len(task.labels),
        sample_shape=task.input_shape,
        test_samples=len(task.test),
        train_samples=len(task.train),
        validation_samples=len(task.validation),
        calibration_samples=len(task.calibration),
        labels=task.labels,
        majority_share=float(np.bincount(task.test.y).max() / len(task.test))
        if task.kind == "classification"
        else None,
    )


def _warnings(recipe: Recipe) -> list[str]:
    """Return what a reader of the report has to know of where it was measured."""
    here = this_target()
    return [
        f"{variant.name} is made for {variant.step.target} and was run on {here}: its score and "
        f"its speed here say little of the device it is for"
        for variant in recipe.variants
        if isinstance(variant.step, QuantizeAware | QuantizeStatic | QuantizeDynamic)
        and variant.step.target not in {None, here}
    ]
