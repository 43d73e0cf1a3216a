"""What a report says of a run beside the numbers: lineage, steps, method, machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.bench import SYSTEMATIC
from deploy.goals import delta, metric_of, spare, title
from deploy.record import Goal
from deploy.report.build import FRONT_RATIO, FRONT_SHARE
from deploy.report.quantities import memory_size, percent
from deploy.report.results import Results, Variant

_INT8_METHOD = (
    "Read from the graph that ONNX Runtime runs on this machine, opened as it ships; for LiteRT, "
    "from the types in the file, by which it chooses its kernels. "
    "Multiply-accumulates (MACs) are those of layers with stored weights, for one sample; a float "
    "island computes in float between int8 kernels. The notes under Layers say why a layer that was "
    "planned as int8 is not; `lightship audit` says what to do about it."
)
KERAS_AGREEMENT = "Agrees with Keras"
"""Title of the column with ``keras_agreements``."""
_AGREEMENT_METHOD = (
    f" {KERAS_AGREEMENT}: the share of the test samples on which a file that was trained for int8 "
    "chooses the class that the Keras model of that training chooses."
)


def keras_agreements(results: Results) -> dict[str, str]:
    """Say of variants that were trained for int8, by name, how often they choose as Keras does."""
    shares = {variant.name: variant.keras_agreement for variant in audited(results)}
    # Down, not to the nearest: only what never differs is 100 %.
    return {
        name: percent(math.floor(1e4 * share) / 1e4, 2)
        for name, share in shares.items()
        if share is not None
    }


def int8_method(results: Results) -> str:
    """Say how it is known what runs in int8, in Markdown."""
    return _INT8_METHOD + (_AGREEMENT_METHOD if keras_agreements(results) else "")


def audited(results: Results) -> list[Variant]:
    """Return the variants whose kernels were looked at."""
    return [variant for variant in results.variants if variant.int8_layers is not None]


def front(results: Results) -> str:
    """Say what the mark of the front means, for the reader of a report."""
    goal, what = results.goal, metric_of(results.goal).title
    return (
        f"● On the Pareto front: no other variant is better in one of {what}, size, gzipped size "
        f"and median time without being worse in another. Only what goes beyond "
        f"{_least(goal, results.baseline.score)} of {what}, {100 * FRONT_RATIO:g}\u202f% of a size, or "
        f"both {100 * FRONT_RATIO:g}\u202f% of a time and its interval counts as better or worse; "
        f"noise of the {what} beyond that may still decide, and the intervals tell."
    )


def _least(goal: Goal, baseline: float) -> str:
    least = FRONT_SHARE * spare(goal, baseline)
    return delta(goal, least, least, least).removeprefix("+")


def lineage(results: Results) -> Iterator[tuple[int, Variant]]:
    """Yield every variant below its parent, with its depth in the tree, the baseline at 0."""

    def below(parent: str | None, depth: int) -> Iterator[tuple[int, Variant]]:
        for variant in results.variants:
            if variant.parent == parent:
                yield depth, variant
                yield from below(variant.name, depth + 1)

    return below(None, 0)


def step_words(variant: Variant) -> str:
    """Say which step made a variant, with every setting that says something.

    The kind comes first: ``magnitude prune · final sparsity 0.9 · skip conv1, dense2``. Defaults
    are not known here, so all settings are said but those that are null, empty or 0; in a setting
    by layer (``per_layer``) a 0 counts.
    """
    kind = [_spaced(str(variant.step["kind"]))] if variant.step.get("kind") else []
    return " · ".join(kind + _settings(variant.step))


def _settings(step: Mapping[str, Any]) -> list[str]:
    """Return the settings of a step or of a table in it as words, without its kind."""
    said = (_setting(name, value) for name, value in step.items() if name != "kind")
    return [words for words in said if words]


def _setting(name: str, value: Any) -> str:
    """Return one setting as words, or nothing where it says nothing."""
    label = "fine-tune" if name == "fine_tune" else _spaced(name)
    if isinstance(value, bool):
        return label if value else f"not {label}"
    if value is None or value in ("", 0):
        return ""
    if isinstance(value, Mapping):
        if name.startswith("per_"):
            entries = [f"{layer} {_plain(entry)}" for layer, entry in value.items()]
            return f"{label} {', '.join(entries)}" if entries else ""
        return _table(label, value)
    if isinstance(value, list | tuple):
        return f"{label} {', '.join(map(_plain, value))}" if value else ""
    return f"{label} {_plain(value)}"


def _table(label: str, table: Mapping[str, Any]) -> str:
    """Return a nested table as words: what it is, the rest in brackets."""
    head = [label]
    if table.get("kind"):
        head.append(_spaced(str(table["kind"])))
    if table.get("epochs"):
        epochs = table["epochs"]
        head.append(_plural(epochs, "epoch") if isinstance(epochs, int) else f"{epochs} epochs")
    rest = _settings({name: value for name, value in table.items() if name != "epochs"})
    if len(head) == 1 and not rest:
        return ""
    return " ".join(head) + (f" ({', '.join(rest)})" if rest else "")


def _plain(value: Any) -> str:
    """Return a plain value as words; a list or table among others in brackets."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        kind = _spaced(str(value.get("kind", "")))
        return " ".join(part for part in (kind, ", ".join(_settings(value))) if part)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return str(value)


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def method(results: Results) -> str:
    """Say how score and time were measured."""
    data, session = results.data, results.session
    text = f"{title(results.goal)} on {data.test_samples:,} test samples of {data.name}, in the session that ships."
    if not metric_of(results.goal).higher_is_better:
        text += " Less is better."
    if session.processes is None:
        return f"{text} Nothing was timed."
    when = f", measured {session.measured_at}" if session.measured_at else ""
    return (
        f"{text} Times: of random inputs, {_plural(session.threads, 'thread')}, all variants "
        f"interleaved in random order, {_plural(session.sessions_per_process, 'session')} in each "
        f"of {_plural(session.processes, 'process', 'processes')}, throughput in batches of "
        f"{session.batch}{when}. Intervals are 95\u202f% intervals; those of speed-ups are widened "
        f"by ±{100 * SYSTEMATIC:g}\u202f% for what the layout of code and memory does to a time."
    )


def environment_facts(results: Results) -> list[tuple[str, str]]:
    """Return the machine, the data and the session as pairs of name and text."""
    machine, data, session = results.environment, results.data, results.session
    parts = (
        ("training", data.train_samples),
        ("validation", data.validation_samples),
        ("calibration", data.calibration_samples),
        ("test", data.test_samples),
    )
    load = machine.load_average
    return [
        ("CPU", f"{machine.cpu}, {_plural(machine.cores, 'core')}, {machine.architecture}"),
        ("Instruction sets", ", ".join(machine.isa) or "none of note"),
        ("Quantization target", machine.target),
        ("Memory", memory_size(machine.memory_bytes) if machine.memory_bytes else "not known"),
        ("Frequency governor", machine.governor or "not known"),
        ("Load average", "not known" if load is None else f"{load:.2f} when measuring began"),
        ("System", f"{machine.os}, Python {machine.python}"),
        ("Versions", ", ".join(f"{name} {text}" for name, text in machine.versions.items())),
        ("Session", _session(session.threads, session.disabled_optimizers)),
        ("Data", f"{data.name}, {_outputs(results)} ({data.licence})"),
        ("Sample", " × ".join(str(size) for size in data.sample_shape)),
        ("Samples", ", ".join(f"{name} {size:,}" for name, size in parts if size is not None)),
        ("Written", f"{results.created} by lightship {results.lightship}"),
    ]


def _outputs(results: Results) -> str:
    count = results.data.outputs
    match results.goal.task:
        case "classification":
            return _plural(count, "class", "classes")
        case "multi_label":
            return _plural(count, "label")
        case "regression":
            return _plural(count, "target")
        case "reconstruction":
            return "reconstruction, judged by the anomalies that its errors tell"


def _session(threads: int, disabled: tuple[str, ...]) -> str:
    without = f", without {', '.join(disabled)}" if disabled else ""
    return f"{_plural(threads, 'thread')}{without}"


def _plural(number: int | None, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
