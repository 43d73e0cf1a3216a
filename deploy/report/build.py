"""From records and measurements to ``Results``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from deploy.audit import Audit
from deploy.goals import bounds, delta, delta_bounds, gain, metric_of, score, spare
from deploy.record import (
    Artifact,
    Comparison,
    Environment,
    Evaluation,
    Goal,
    Latency,
    Measurement,
    SessionOptions,
)
from deploy.report.results import Data, Reproduce, Results, Session, Training, Variant
from deploy.report.verdict import lost_or_gained, verdict

FRONT_SHARE = 0.05
"""Scores this close count as equal on the Pareto front, as a share of what may be spared."""
FRONT_RATIO = 0.01
"""Sizes and times this close, as a fraction, count as equal on the Pareto front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One variant as the run left it.

    Attributes:
        name: its name in the recipe.
        parent: name of the variant it was made from; None for the first.
        artifact: the record of its file.
        path: where the file lies, relative to the folder that the report is written to.
        evaluation: how good it is on the test samples.
        against_parent: its answers beside those of its parent; None for the first.
        against_baseline: its answers beside those of the first variant; None for the first.
        audit: what of it runs in int8; None if nobody looked.
        packed_bytes: of its file as ``lightship pack`` writes it; None if nobody packed it.
        entropy_bound_bytes: what no code of single weights is shorter than; None likewise.
    """

    name: str
    parent: str | None
    artifact: Artifact
    path: str
    evaluation: Evaluation
    against_parent: Comparison | None
    against_baseline: Comparison | None
    audit: Audit | None = None
    packed_bytes: int | None = None
    entropy_bound_bytes: int | None = None


def build_results(
    variants: Sequence[Finished],
    *,
    measurement: Measurement | None,
    environment: Environment,
    session: SessionOptions,
    data: Data,
    name: str,
    title: str,
    description: str,
    lightship: str,
    created: str,
    reproduce: Reproduce,
    history: Mapping[str, Training],
    goal: Goal = Goal(),
    warnings: Sequence[str] = (),
) -> Results:
    """Put together what a run found, mark the Pareto front and pass the verdict.

    Args:
        variants: the baseline first, every parent before its children.
        measurement: the bench of the variants in the same order, or None if nothing was timed.
        environment: the machine; a measurement's own environment goes before it.
        session: how the models were opened; a measurement's own options go before it.
        data: what was learned; labels that it lacks are those of the first artifact.
        name: name of the recipe.
        title: heading of the report.
        description: a sentence or two below it.
        lightship: version of lightship.
        created: ISO 8601 time at which the run ended.
        reproduce: how to get these results again.
        history: training by variant, for those that were trained.
        goal: the task, and the metric that decides.
        warnings: what a reader has to know, besides the warnings of the measurement.

    Raises:
        ValueError: if a name comes twice, a parent does not come before its child, a comparison
            is missing, or the measurement is not of as many variants.
    """
    _require_tree(variants)
    latencies: Sequence[Latency | None] = [None] * len(variants)
    if measurement is not None:
        latencies = measurement.latencies
        if len(latencies) != len(variants):
            raise ValueError(f"{len(variants)} variants but {len(latencies)} latencies")
    facts = [_variant(done, seen) for done, seen in zip(variants, latencies, strict=True)]
    if not data.labels:
        data = msgspec.structs.replace(data, labels=variants[0].artifact.labels)
    options = measurement.session if measurement else session
    results = Results(
        schema=2,
        name=name,
        title=title,
        description=description,
        lightship=lightship,
        created=created,
        verdict="",
        data=data,
        environment=measurement.environment if measurement else environment,
        session=Session(
            threads=options.threads,
            arena=options.arena,
            disabled_optimizers=options.disabled_optimizers,
            processes=measurement.processes if measurement else None,
            sessions_per_process=measurement.sessions_per_process if measurement else None,
            batch=measurement.latencies[0].batch if measurement else None,
            measured_at=(measurement.measured_at or None) if measurement else None,
        ),
        variants=tuple(facts),
        history={variant: _finite(training) for variant, training in history.items()},
        warnings=(
            *_doubts(facts, data, goal),
            *(measurement.warnings if measurement else ()),
            *(
                f"{done.name}: {done.audit.saturation}"
                for done in variants
                if done.audit and done.audit.saturation
            ),
            *warnings,
        ),
        reproduce=reproduce,
        goal=goal,
    )
    return judged(results)


def judged(results: Results) -> Results:
    """Return results with the Pareto front and the verdict as today's rules have them."""
    front = pareto_front(results.variants, results.goal)
    variants = tuple(
        msgspec.structs.replace(variant, pareto=on_front)
        for variant, on_front in zip(results.variants, front, strict=True)
    )
    return msgspec.structs.replace(results, variants=variants, verdict=verdict(results))


def pareto_front(variants: Sequence[Variant], goal: Goal = Goal()) -> list[bool]:
    """Say of each variant whether it is on the Pareto front of score, size and median time.

    A variant is beaten by another that is in none of score, size, gzipped size and time worse,
    and in one of them better. Better or worse is only what goes beyond a tolerance: a twentieth of
    what may be spared (0.05 points of a share), 1 % of a size, and for the time 1 % and intervals
    that lie apart. So one byte decides nothing. A variant is off the front if one on the front
    beats it; as a tolerance is not transitive, variants may beat each other round in a circle, and
    then all of them stay on it. The time counts where every variant was timed. Differences of the
    score are taken as they stand beyond the tolerance: it is the verdict that judges noise.
    """
    timed = all(variant.p50_ms is not None for variant in variants)

    def beats(one: Variant, other: Variant) -> bool:
        gains = [
            _gain_of_score(one, other, goal, FRONT_SHARE * spare(goal, variants[0].score)),
            _gain_of_size(one.size_bytes, other.size_bytes),
            _gain_of_size(one.gzip_bytes, other.gzip_bytes),
            _gain_of_time(one, other) if timed else 0,
        ]
        return min(gains) >= 0 and max(gains) > 0

    beaten_by = [{i for i, v in enumerate(variants) if beats(v, other)} for other in variants]
    on: set[int] = set()
    off: set[int] = set()
    while new := {i for i, by in enumerate(beaten_by) if i not in on | off and by <= off}:
        on |= new
        off |= {i for i, by in enumerate(beaten_by) if by & new}
    return [i not in off for i in range(len(variants))]


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _gain_of_score(one: Variant, other: Variant, goal: Goal, tolerance: float) -> int:
    """Say whether the first is better (1), worse (-1) or as good (0)."""
    unit = 100 if metric_of(goal).form == "share" else 1
    difference = unit * gain(goal, one.score - other.score)
    # A hair more than the tolerance, since 0.9865 - 0.986 is not quite 0.0005.
    return _sign(difference) if abs(difference) > tolerance + 1e-7 else 0


def _gain_of_size(one: float, other: float) -> int:
    """Say whether the first is smaller (1), larger (-1) or about as (0) large."""
    return _sign(other - one) if max(one, other) > (1 + FRONT_RATIO) * min(one, other) else 0


def _gain_of_time(one: Variant, other: Variant) -> int:
    """Say whether the first is faster (1), slower (-1) or about as (0) fast."""
    mine, its = one.p50_ms or 0.0, other.p50_ms or 0.0
    lows = (one.p50_low_ms or mine, other.p50_low_ms or its)
    highs = (one.p50_high_ms or mine, other.p50_high_ms or its)
    return 0 if max(lows) <= min(highs) else _gain_of_size(mine, its)


def _doubts(variants: Sequence[Variant], data: Data, goal: Goal) -> list[str]:
    """Say why the baseline may be too poor to compare anything with."""
    baseline = variants[0]
    doubts = [doubt for doubt in (_no_better_than_guessing(baseline, data, goal),) if doubt]
    better = [
        v for v in variants[1:] if lost_or_gained(v) and gain(goal, v.baseline_delta or 0) > 0
    ]
    if better:
        best = max(better, key=lambda v: gain(goal, v.baseline_delta or 0))
        longer = ", which was trained longer," if _trains(best, variants) else ""
        ends = best.baseline_delta or 0, best.baseline_delta_low or 0, best.baseline_delta_high or 0
        doubts.append(
            f"{baseline.name} looks undertrained: {best.name}{longer} is better in "
            f"{metric_of(goal).title} by {delta(goal, *ends)} {delta_bounds(goal, *ends)}. "
            f"Train {baseline.name} longer before comparing."
        )
    return doubts


def _no_better_than_guessing(baseline: Variant, data: Data, goal: Goal) -> str | None:
    """Say that the baseline may as well guess, or None if it detectably does better."""
    match goal.task:
        case "classification":
            name, least = "accuracy", data.majority_share
            guess = "always answering the most frequent class"
            if least is None:
                least, guess = 1 / max(1, data.outputs), "guessing"
        case "regression":
            name, least, guess = "r2", 0.0, "always answering the mean"
        case "reconstruction":
            name, least, guess = "roc_auc", 0.5, "guessing"
        case "multi_label":
            return None
    by = Goal(task=goal.task, metric=name)
    seen = baseline.metrics.get(name)
    if seen is None or seen.low > least:
        return None
    return (
        f"{baseline.name} is not detectably better than {guess}, whose {metric_of(by).title} is "
        f"{score(by, least)}: its own is {score(by, seen.value)} {bounds(by, seen.low, seen.high)}. "
        "What the variants cost means little until it has learned something."
    )


def _trains(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Say whether a step between the baseline and a variant had epochs of its own."""
    by_name = {v.name: v for v in variants}
    while variant.parent is not None:
        if any(isinstance(value, dict) and "epochs" in value for value in variant.step.values()):
            return True
        variant = by_name[variant.parent]
    return False


def _require_tree(variants: Sequence[Finished]) -> None:
    seen: set[str] = set()
    for done in variants:
        if done.name in seen:
            raise ValueError(f"variant {done.name!r} comes twice")
        if seen and done.parent not in seen:
            raise ValueError(f"variant {done.name!r} comes before its parent {done.parent!r}")
        if seen and (done.against_parent is None or done.against_baseline is None):
            raise ValueError(f"variant {done.name!r} was not compared with parent and baseline")
        if not seen and done.parent is not None:
            raise ValueError(f"the first variant, {done.name!r}, must have no parent")
        seen.add(done.name)


def _variant(done: Finished, seen: Latency | None) -> Variant:
    artifact, measured = done.artifact, done.evaluation.score
    parent, baseline = done.against_parent, done.against_baseline
    audit = done.audit
    return Variant(
        name=done.name,
        parent=done.parent,
        step=artifact.step,
        seed=artifact.seed,
        format=artifact.format,
        path=done.path,
        sha256=artifact.sha256,
        size_bytes=artifact.size_bytes,
        gzip_bytes=artifact.gzip_bytes,
        parameters=artifact.parameters,
        nonzero_parameters=artifact.nonzero_parameters,
        score=measured.value,
        score_low=measured.low,
        score_high=measured.high,
        delta=parent.delta.value if parent else None,
        delta_low=parent.delta.low if parent else None,
        delta_high=parent.delta.high if parent else None,
        mcnemar_p=parent.mcnemar_p if parent else None,
        agreement=parent.agreement if parent else None,
        baseline_delta=baseline.delta.value if baseline else None,
        baseline_delta_low=baseline.delta.low if baseline else None,
        baseline_delta_high=baseline.delta.high if baseline else None,
        baseline_mcnemar_p=baseline.mcnemar_p if baseline else None,
        baseline_agreement=baseline.agreement if baseline else None,
        p50_ms=seen.p50_ms.value if seen else None,
        p50_low_ms=seen.p50_ms.low if seen else None,
        p50_high_ms=seen.p50_ms.high if seen else None,
        p90_ms=seen.p90_ms if seen else None,
        p99_ms=seen.p99_ms if seen else None,
        speedup=seen.speedup.value if seen else None,
        speedup_low=seen.speedup.low if seen else None,
        speedup_high=seen.speedup.high if seen else None,
        throughput_per_s=seen.throughput_per_s if seen else None,
        load_ms=seen.load_ms if seen else None,
        peak_rss_bytes=seen.peak_rss_bytes if seen else None,
        pareto=False,
        layers=artifact.layers,
        macs=audit.macs if audit else None,
        int8_macs_share=audit.int8_macs_share if audit else None,
        int8_layers=audit.int8_layers if audit else None,
        weighted_layers=len(audit.layers) if audit else None,
        float_islands=len(audit.float_islands) if audit else None,
        keras_agreement=artifact.keras_agreement,
        metrics=done.evaluation.metrics,
        per_label=done.evaluation.per_label,
        per_label_delta=parent.per_label_delta if parent else (),
        baseline_per_label_delta=baseline.per_label_delta if baseline else (),
        answers=done.evaluation.answers,
        packed_bytes=done.packed_bytes,
        entropy_bound_bytes=done.entropy_bound_bytes,
    )


def _finite(training: Training) -> Training:
    """Write null for what JSON cannot hold, as a diverged loss."""
    epochs = tuple(
        {
            name: None if value is None or not math.isfinite(value) else value
            for name, value in metrics.items()
        }
        for metrics in training.epochs
    )
    return msgspec.structs.replace(training, epochs=epochs)
