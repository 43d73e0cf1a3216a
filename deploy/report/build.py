"""From records and measurements to ``Results``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from deploy.audit import Audit
from deploy.record import (
    Artifact,
    Comparison,
    Environment,
    Evaluation,
    Latency,
    Measurement,
    SessionOptions,
)
from deploy.report.results import Data, Reproduce, Results, Session, Training, Variant
from deploy.report.verdict import verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One variant as the run left it.

    Attributes:
        name: its name in the recipe.
        parent: name of the variant it was made from; None for the first.
        artifact: the record of its file.
        path: where the file lies, relative to the folder that the report is written to.
        evaluation: its accuracy on the test samples.
        against_parent: its classes beside those of its parent; None for the first.
        against_baseline: its classes beside those of the first variant; None for the first.
        audit: what of it runs in int8; None if nobody looked.
    """

    name: str
    parent: str | None
    artifact: Artifact
    path: str
    evaluation: Evaluation
    against_parent: Comparison | None
    against_baseline: Comparison | None
    audit: Audit | None = None


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
    warnings: Sequence[str] = (),
) -> Results:
    """Put together what a run found, mark the Pareto front and pass the verdict.

    Args:
        variants: the baseline first, every parent before its children.
        measurement: the bench of the variants in the same order, or None if nothing was timed.
        environment: the machine; a measurement's own environment goes before it.
        session: how the models were opened; a measurement's own options go before it.
        data: what was learned.
        name: name of the recipe.
        title: heading of the report.
        description: a sentence or two below it.
        lightship: version of lightship.
        created: ISO 8601 time at which the run ended.
        reproduce: how to get these results again.
        history: training by variant, for those that were trained.
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
    front = pareto_front(facts)
    options = measurement.session if measurement else session
    results = Results(
        schema=1,
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
            disabled_optimizers=options.disabled_optimizers,
            processes=measurement.processes if measurement else None,
            sessions_per_process=measurement.sessions_per_process if measurement else None,
            batch=measurement.latencies[0].batch if measurement else None,
        ),
        variants=tuple(
            msgspec.structs.replace(variant, pareto=on_front)
            for variant, on_front in zip(facts, front, strict=True)
        ),
        history={variant: _finite(training) for variant, training in history.items()},
        warnings=(*(measurement.warnings if measurement else ()), *warnings),
        reproduce=reproduce,
    )
    return msgspec.structs.replace(results, verdict=verdict(results))


def pareto_front(variants: Sequence[Variant]) -> list[bool]:
    """Say of each variant whether it is on the Pareto front of accuracy, size and median time.

    A variant is off the front if another is at least as accurate, at least as small, plain and
    gzipped, and at least as fast, and better in one of the four. The estimates are compared as they stand, intervals
    aside, so that the mark follows from the numbers printed: a place on the front may be owed to
    noise, and it is the verdict that judges noise. The time counts where every variant was timed.
    """
    timed = all(variant.p50_ms is not None for variant in variants)

    def costs(variant: Variant) -> tuple[float, ...]:
        time = (variant.p50_ms or 0.0,) if timed else ()
        return (-variant.accuracy, variant.size_bytes, variant.gzip_bytes, *time)

    def dominates(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
        return left != right and all(a <= b for a, b in zip(left, right, strict=True))

    everyone = [costs(variant) for variant in variants]
    return [not any(dominates(other, mine) for other in everyone) for mine in everyone]


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
    artifact, measured = done.artifact, done.evaluation.accuracy
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
        accuracy=measured.value,
        accuracy_low=measured.low,
        accuracy_high=measured.high,
        delta_points=parent.delta_points.value if parent else None,
        delta_low=parent.delta_points.low if parent else None,
        delta_high=parent.delta_points.high if parent else None,
        mcnemar_p=parent.mcnemar_p if parent else None,
        agreement=parent.agreement if parent else None,
        baseline_delta_points=baseline.delta_points.value if baseline else None,
        baseline_delta_low=baseline.delta_points.low if baseline else None,
        baseline_delta_high=baseline.delta_points.high if baseline else None,
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
