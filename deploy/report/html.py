"""``report.html``: one file that asks nothing of any network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import goals
from deploy.errors import needs_extra
from deploy.record import LayerFacts, Roc, Scatter
from deploy.report import plots, quantities
from deploy.report.classes import about_classes, class_rows, noun
from deploy.report.confusion import confusion_tables
from deploy.report.machines import COLUMNS, machine_rows, machine_words
from deploy.report.metrics import metric_rows
from deploy.report.results import Results, Variant
from deploy.report.runtimes import ABOUT as RUNTIMES
from deploy.report.runtimes import runtime_lines
from deploy.report.summary import (
    KERAS_AGREEMENT,
    audited,
    environment_facts,
    front,
    int8_method,
    keras_agreements,
    method,
    step_words,
)
from deploy.report.table import RESOURCES, columns_of
from deploy.report.verdict import best_variant, lost_or_gained, rule

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure: its markup for a wide and for a narrow page."""

    title: str
    wide: str
    narrow: str


@dataclass(frozen=True, slots=True)
class _Key:
    """One of the numbers at the top."""

    label: str
    value: str
    detail: str
    note: str


@dataclass(frozen=True, slots=True)
class _Node:
    """A variant in the tree."""

    variant: Variant
    step: str
    children: tuple[_Node, ...]


def to_html(results: Results) -> str:
    """Return ``report.html``, the same bytes for the same results.

    Raises:
        MissingExtraError: if the extra ``report`` is not installed.
    """
    with needs_extra("report"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        {name: getattr(quantities, name) for name in ("count", "file_size", "percent")}
    )
    environment.globals["goals"] = goals
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        results=results,
        best=best_variant(results),
        keys=_keys(results),
        figures=_figures(results),
        curves=_curves(results),
        answers=_answers(results),
        confusions=confusion_tables(results, best_variant(results)),
        tree=_tree(results),
        columns=columns_of(results),
        runtime_lines=runtime_lines(results),
        about_runtimes=RUNTIMES,
        audited=audited(results),
        agreements=keras_agreements(results),
        agreement_title=KERAS_AGREEMENT,
        int8_method=int8_method(results).replace("`", ""),
        resources=columns_of(results, RESOURCES),
        classes=class_rows(results),
        about_classes=about_classes(results),
        noun=noun(results.goal),
        label_goal=goals.per_label(results.goal),
        metrics=metric_rows(results),
        about_front=front(results).removeprefix("● "),
        layers=_layer_names(results),
        layer_of=_layer_of(results),
        notes=_notes(results),
        machine_columns=COLUMNS,
        machine_rows=machine_rows(results),
        machine_words=machine_words,
        facts=environment_facts(results),
        method=method(results),
        rule=rule(results.goal),
        style=(_TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        # The page runs this one script; a script that came in with a name does not run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _keys(results: Results) -> list[_Key]:
    """Return size, time and score of the best variant beside the baseline's."""
    best, baseline = best_variant(results), results.baseline
    if best is None:
        return []
    keys = [
        _Key(
            "Size, gzipped",
            quantities.times(baseline.gzip_bytes / best.gzip_bytes),
            "",
            _change(quantities.file_size, baseline.gzip_bytes, best.gzip_bytes),
        ),
        _Key(
            "Size of the file",
            quantities.times(baseline.size_bytes / best.size_bytes),
            "",
            _change(quantities.file_size, baseline.size_bytes, best.size_bytes),
        ),
    ]
    if best.p50_ms and baseline.p50_ms and best.speedup and best.speedup_low and best.speedup_high:
        keys.append(
            _Key(
                "Speed",
                quantities.times(best.speedup),
                quantities.times_bounds(best.speedup, best.speedup_low, best.speedup_high),
                _change(quantities.duration, baseline.p50_ms, best.p50_ms),
            )
        )
    value, low, high = best.baseline_delta, best.baseline_delta_low, best.baseline_delta_high
    if value is not None and low is not None and high is not None:
        goal, told = results.goal, "" if lost_or_gained(best) else "; no detectable difference"
        unit = goals.delta_unit(goal)
        keys.append(
            _Key(
                goals.title(goal) + (f", {unit}" if unit else ""),
                goals.delta_number(goal, value, low, high),
                goals.delta_bounds(goal, value, low, high),
                f"{goals.score(goal, baseline.score)} → {goals.score(goal, best.score)}{told}",
            )
        )
    return keys


def _change(write: Any, before: float, after: float) -> str:
    return f"{write(before)} → {write(after)}"


def _figures(results: Results) -> list[_Figure]:
    title = goals.title(results.goal)
    draw = [(f"{title} against file size", plots.score_against_size)]
    if all(variant.p50_ms is not None for variant in results.variants):
        draw.append((f"{title} against time", plots.score_against_time))
    return [
        _Figure(title, _safe(f(results, "wide")), _safe(f(results, "narrow"))) for title, f in draw
    ]


def _curves(results: Results) -> list[tuple[str, int, list[str]]]:
    """Return name, kept epoch and figures, loss first, of every variant that was trained."""
    curves = []
    for index, (name, training) in enumerate(results.history.items()):
        figures = [
            _safe(plots.training_curve(name, training, metric=metric, index=100 * index + number))
            for number, metric in enumerate(plots.curves_of(training))
        ]
        if figures:
            curves.append((name, training.kept_epoch, figures))
    return curves


def _answers(results: Results) -> list[tuple[str, str]]:
    """Return title and figure of how the answers lie beside the truth."""
    best, goal = best_variant(results), results.goal
    shown = [results.baseline, *([best] if best else [])]
    curves = [(v.name, v.answers) for v in results.variants if isinstance(v.answers, Roc)]
    if curves:
        return [("ROC curves", _safe(plots.roc(curves, chosen=shown[-1].name, index=0)))]
    figures = []
    for index, variant in enumerate(shown):
        seen = variant.answers
        if isinstance(seen, Scatter):
            dots = plots.scatter(seen, results.data.labels, goal=goal, index=index)
            errors = plots.error_histogram(seen, goal=goal, index=index)
            figures += [
                (f"{variant.name}: predicted beside true", _safe(dots)),
                (f"{variant.name}: errors", _safe(errors)),
            ]
    return figures


def _safe(svg: str) -> Any:
    """Mark as markup what an XML writer wrote, every text in it escaped."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704  (see above)


def _tree(results: Results) -> _Node:
    def node(variant: Variant) -> _Node:
        children = [child for child in results.variants if child.parent == variant.name]
        return _Node(variant, step_words(variant), tuple(node(child) for child in children))

    return node(results.baseline)


def _layer_names(results: Results) -> list[LayerFacts]:
    """Return one layer of each name, in the order of the first variant that has it."""
    layers: dict[str, LayerFacts] = {}
    for variant in results.variants:
        for layer in variant.layers:
            layers.setdefault(layer.name, layer)
    return list(layers.values())


def _layer_of(results: Results) -> dict[tuple[str, str], LayerFacts]:
    return {
        (variant.name, layer.name): layer
        for variant in results.variants
        for layer in variant.layers
    }


def _notes(results: Results) -> dict[str, int]:
    """Number the notes on layers, equal ones once."""
    texts: Sequence[str] = [
        layer.note for variant in results.variants for layer in variant.layers if layer.note
    ]
    return {text: number for number, text in enumerate(dict.fromkeys(texts), start=1)}
