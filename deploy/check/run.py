"""How a gate is run: what each limit asks for is measured until it can be told, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.bench import SYSTEMATIC, Bench, children, log_p50
from deploy.bench_child import Timed
from deploy.bundle.footprint import footprint
from deploy.bundle.opened import Bundle, is_bundle, open_bundle
from deploy.bundle.unpack import to_bench
from deploy.check import accuracy, int8
from deploy.check.rules import (
    Checked,
    Finding,
    Limits,
    Outcome,
    at_least,
    at_most,
    look,
    overall,
    samples_needed,
)
from deploy.errors import UserError
from deploy.evalset import EvalSet
from deploy.goals import delta_bounds, delta_number, delta_unit, metric_of
from deploy.machine import this_environment
from deploy.preprocess import apply
from deploy.record import Goal, Interval, SessionOptions, sha256_of
from deploy.session import Model, ModelMetadata, open_model, random_inputs
from deploy.sizes import format_size

_FIRST = 6
"""Processes before the first look; each look after it has twice as many."""
_LEAST = 2
"""Processes that are run even if time is up: fewer have no spread."""

Drawn = TypeVar("Drawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A bundle or ONNX file that is looked at."""

    path: Path
    bundle: Bundle | None
    content: bytes
    options: SessionOptions
    goal: Goal

    def open(self) -> Model:
        if self.bundle is not None:
            return self.bundle.session(self.options.threads)
        return open_model(self.path, self.options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pace:
    """How long something is repeated, and who is told.

    Attributes:
        deadline: when, by ``clock``, nothing more is begun.
        say: told what is being done.
        clock: seconds.
    """

    deadline: float
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, kw_only=True)  # slots and Generic do not go together before 3.12
class _Repeated(Generic[Drawn]):
    """A limit on something that noise blurs.

    Attributes:
        rule: as in ``Finding``.
        limit: as in ``Finding``.
        unit: as in ``Finding``.
        values: the logarithm of the quantity, one value a process, from what was drawn.
        show: a value in words.
        what: what it is the value of.
        systematic: what repetition cannot average away, as a share.
    """

    rule: str
    limit: float
    unit: str
    values: Callable[[Sequence[Drawn]], npt.NDArray[np.float64]]
    show: Callable[[float], str]
    what: str
    systematic: float


def check(
    path: Path,
    limits: Limits,
    *,
    baseline: Path | None = None,
    data: Path | None = None,
    public_key: Path | None = None,
    threads: int | None = None,
    time_limit_s: float = 300.0,
    seed: int = 0,
    bench: Bench = Bench(),
    on_progress: Callable[[str], None] | None = None,
) -> Checked:
    """Hold a bundle to limits.

    Args:
        path: a bundle, or an ONNX file.
        limits: what is asked.
        baseline: the bundle or ONNX file that it is compared with.
        data: ``.npz`` with labelled samples; None to believe what the bundle says of its run.
        public_key: whose signature the bundle and the baseline have to bear; None asks for none.
        threads: threads of one run; None for as many as the bundle was measured with, or 1.
        time_limit_s: when no new process is started to tell noise from difference.
        seed: of the order of everything and of the random inputs.
        bench: how long a process times.
        on_progress: called with what is being done.

    Raises:
        UserError: if a file is missing, damaged or not signed as asked, nothing is asked, or a limit needs a baseline
            or data that were not given.
    """
    start = time.monotonic()
    say = on_progress or (lambda _: None)
    _require_answerable(limits, baseline)
    subject = _opened(path, threads, public_key)
    _require_a_share(limits, subject)
    reference = None
    if baseline is not None:
        reference = _opened(baseline, subject.options.threads, public_key)
    settings = msgspec.structs.replace(
        bench,
        threads=subject.options.threads,
        arena=subject.options.arena,
        batch=1,  # no limit is on more, and not every model takes more
    )
    findings: list[Finding] = []
    if limits.max_size_bytes is not None:
        findings.append(_size(path, limits.max_size_bytes))
    if limits.max_drop_points is not None or limits.min_accuracy is not None:
        say("accuracy")
        findings += _accuracy(limits, subject, reference, data)
    if limits.require_int8:
        say("kernels")
        findings.append(_int8(subject, seed))
    pace = _Pace(deadline=start + time_limit_s, say=say)
    if limits.max_peak_memory_bytes is not None:
        findings += _memory(limits.max_peak_memory_bytes, subject, settings, pace, seed=seed)
    timed = [subject] if reference is None else [subject, reference]
    findings += _times(limits, timed, settings, pace, seed=seed, public_key=public_key)
    return Checked(
        outcome=overall(findings),
        path=str(path),
        sha256=_sha256(subject),
        bundle=subject.bundle.id if subject.bundle is not None else None,
        baseline=str(baseline) if baseline is not None else None,
        findings=tuple(findings),
        session=subject.options,
        environment=this_environment(),
        elapsed_s=time.monotonic() - start,
        checked_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _require_answerable(limits: Limits, baseline: Path | None) -> None:
    if limits == Limits():
        raise UserError("check: nothing is asked; give a limit such as --max-size 100kB")
    if limits.max_p50_ratio is not None and baseline is None:
        raise UserError(
            "--max-p50-ratio: is a ratio to the time of another model; name it with --baseline"
        )


def _require_a_share(limits: Limits, subject: _Subject) -> None:
    """Refuse to hold another unit to a fraction, before anything is measured."""
    goal = subject.goal
    if limits.min_accuracy is not None and metric_of(goal).form != "share":
        raise UserError(
            f"--min-accuracy: is a fraction, and {subject.path} is judged by its "
            f"{metric_of(goal).title}; use --max-drop-points, in the unit of that"
        )


def _opened(path: Path, threads: int | None, public_key: Path | None) -> _Subject:
    """Return a bundle that has been checked whole, or an ONNX file that opens."""
    if is_bundle(path, public_key=public_key):
        bundle = open_bundle(path, public_key=public_key)
        options = bundle.manifest.session
        if threads is not None:
            options = msgspec.structs.replace(options, threads=threads)
        goal = bundle.manifest.goal
        return _Subject(path=path, bundle=bundle, content=bundle.model, options=options, goal=goal)
    options = SessionOptions(threads=threads or 1)
    goal = open_model(path, options).metadata.goal
    content = path.read_bytes()
    return _Subject(path=path, bundle=None, content=content, options=options, goal=goal)


def _sha256(subject: _Subject) -> str:
    if subject.bundle is not None:
        return subject.bundle.model_sha256
    return sha256_of(subject.path)


def _size(path: Path, limit: int) -> Finding:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    size = float(sum(file.stat().st_size for file in files))
    outcome: Outcome = "passed" if size <= limit else "failed"
    return Finding(
        rule="max-size",
        outcome=outcome,
        limit=limit,
        seen=_exactly(size),
        unit="bytes",
        repeats=1,
        sentence=f"{int(size):,} bytes on disk, {limit:,} are allowed",
    )


def _exactly(value: float) -> Interval:
    return Interval(value=value, low=value, high=value)


def _require_one_task(ours: ModelMetadata, theirs: ModelMetadata) -> None:
    """Raise a UserError if a model and its baseline say that they answer different questions."""
    if ours.labels and theirs.labels and ours.labels != theirs.labels:
        mine, other = (", ".join(map(str, found.labels[:3])) for found in (ours, theirs))
        raise UserError(
            f"--baseline: answers {other} …, the model {mine} …; compare models of one task"
        )


def _accuracy(
    limits: Limits, subject: _Subject, reference: _Subject | None, data: Path | None
) -> list[Finding]:
    if data is None:
        if reference is not None and limits.max_drop_points is not None:
            raise UserError(
                "--max-drop-points: to compare with --baseline takes labelled samples, give "
                "--data test.npz; without --baseline, what the bundle's run measured counts"
            )
        known = accuracy.recorded(subject.bundle, str(subject.path))
    else:
        if reference is None and limits.max_drop_points is not None:
            raise UserError(
                "--max-drop-points: is a drop from the accuracy of another model; name it with "
                "--baseline"
            )
        other = reference.open() if reference is not None else None
        model = subject.open()
        if other is not None:
            _require_one_task(model.metadata, other.metadata)
        samples = EvalSet.load(data, model.metadata.goal.task)
        known = accuracy.measured(model, other, samples, name=str(data))
    found = []
    if limits.max_drop_points is not None:
        if known.delta is None:
            raise UserError(
                f"{subject.path}: is the baseline of its run, so it knows no drop; give --data "
                "and --baseline"
            )
        found.append(_drop(known, limits.max_drop_points))
    if limits.min_accuracy is not None:
        found.append(_share(known, limits.min_accuracy))
    return found


def _drop(known: accuracy.Accuracy, limit: float) -> Finding:
    drop = _lost(known)
    unit = delta_unit(known.goal)
    outcome = at_most(drop, limit)
    ends = (drop.value, drop.low, drop.high)
    said = f"{delta_number(known.goal, *ends)} {delta_bounds(known.goal, *ends)} {unit}".rstrip()
    return Finding(
        rule="max-drop-points",
        outcome=outcome,
        limit=limit,
        seen=drop,
        unit=unit,
        repeats=known.samples,
        sentence=f"{metric_of(known.goal).title} got worse by {said}, {limit:g} are allowed; "
        f"{known.source}{_too_few(outcome, drop, limit, known.samples)}",
    )


def _share(known: accuracy.Accuracy, limit: float) -> Finding:
    share = known.score
    outcome = at_least(share, limit)
    return Finding(
        rule="min-accuracy",
        outcome=outcome,
        limit=limit,
        seen=share,
        unit="fraction",
        repeats=known.samples,
        sentence=f"{metric_of(known.goal).title} is {share.value:.2%} "
        f"[{share.low:.2%}, {share.high:.2%}], {limit:.2%} are asked; {known.source}"
        + _too_few(outcome, share, limit, known.samples),
    )


def _lost(known: accuracy.Accuracy) -> Interval:
    """Return by how much a model is worse than the baseline; more is worse whatever the metric."""
    delta = known.delta or Interval(value=0, low=0, high=0)
    if metric_of(known.goal).higher_is_better:
        return Interval(value=0 - delta.value, low=0 - delta.high, high=0 - delta.low)
    return delta


def _too_few(outcome: Outcome, seen: Interval, limit: float, samples: int) -> str:
    """Return what to add where samples are too few to tell."""
    if outcome != "undecided":
        return ""
    needed = samples_needed(seen, limit, samples)
    return "; too few to tell" + (
        f", about {_two_digits(needed)} would be needed"
        if needed is not None
        else ", and no number would: it lies on the limit"
    )


def _two_digits(number: int) -> str:
    """Return a number rounded up, since the rest of its digits is made up.

    >>> _two_digits(123_456)
    '130,000'
    """
    step = 10 ** max(0, len(str(number)) - 2)
    return f"{-(-number // step) * step:,}"


def _int8(subject: _Subject, seed: int) -> Finding:
    model = subject.open()
    if subject.bundle is not None:
        inputs = model.cast(apply(model.metadata.preprocess, subject.bundle.golden.x[:1]))
    else:
        inputs = random_inputs(model, 1, seed=seed)
    ran = int8.products(subject.content, inputs, subject.options)
    count, total = len(ran.int8), len(ran.int8) + len(ran.floating)
    floats = f"; in float: {', '.join(ran.floating)}" if ran.floating else ""
    return Finding(
        rule="require-int8",
        outcome="passed" if count else "failed",
        limit=1,
        seen=_exactly(float(count)),
        unit="kernels",
        repeats=1,
        sentence=f"{count} of {total} products ran as int8 kernels{floats}",
    )


def _memory(
    limit: int, subject: _Subject, settings: Bench, pace: _Pace, *, seed: int
) -> list[Finding]:
    rule = _Repeated[int](
        rule="max-peak-memory",
        limit=limit,
        unit="bytes",
        values=lambda peaks: np.log(np.array(peaks, np.float64)),
        show=format_size,
        what="a new process that opens it and answers once holds",
        systematic=0.0,
    )
    if subject.bundle is not None:
        threads, digest = subject.options.threads, subject.bundle.digest

        def peak(_: int) -> int:
            return footprint(subject.path, threads=threads, digest=digest).peak_rss_bytes

        return _until_told([rule], peak, "memory", pace)
    with children([subject.path], settings, seed=seed) as run:
        return _until_told([rule], lambda _: run.opened(0).peak_rss_bytes, "memory", pace)


def _times(
    limits: Limits,
    asked: Sequence[_Subject],
    settings: Bench,
    pace: _Pace,
    *,
    seed: int,
    public_key: Path | None,
) -> list[Finding]:
    rules = []
    if limits.max_p50_ms is not None:
        rules.append(
            _Repeated[Timed](
                rule="max-p50-ms",
                limit=limits.max_p50_ms,
                unit="ms",
                values=lambda timed: log_p50(timed, 0),
                show=lambda value: f"{value:.4f} ms",
                what="the median time of one sample is",
                systematic=SYSTEMATIC,
            )
        )
    if limits.max_p50_ratio is not None:
        rules.append(
            _Repeated[Timed](
                rule="max-p50-ratio",
                limit=limits.max_p50_ratio,
                unit="ratio",
                values=lambda timed: log_p50(timed, 0) - log_p50(timed, 1),
                show=lambda value: f"{value:.3f}",
                what="the median time of one sample over that of the baseline is",
                systematic=SYSTEMATIC,
            )
        )
    if not rules:
        return []
    paths = [subject.path for subject in asked]
    with (
        to_bench(paths, settings.session, public_key=public_key) as (files, _),
        children(files, settings, seed=seed) as run,
    ):
        return _until_told(rules, run.timed, "time", pace)


def _until_told(
    rules: Sequence[_Repeated[Drawn]],
    draw: Callable[[int], Drawn],
    what: str,
    pace: _Pace,
) -> list[Finding]:
    """Draw processes, and look again at twice as many each time, until all limits are told.

    A limit that has been told stays so: what later looks see is not asked.

    Args:
        rules: the limits.
        draw: runs the process of this number.
        what: what is measured, in a word.
        pace: how long, and who is told.
    """
    told: dict[str, Finding] = {}
    drawn: list[Drawn] = []
    number, target = 0, _FIRST
    while True:
        while len(drawn) < target and (len(drawn) < _LEAST or pace.clock() < pace.deadline):
            pace.say(f"{what}: process {len(drawn) + 1} of {target}")
            drawn.append(draw(len(drawn)))
        number += 1
        late = pace.clock() >= pace.deadline
        for rule in rules:
            if rule.rule not in told:
                found = _judged(rule, drawn, number)
                if found.outcome != "undecided" or late:
                    told[rule.rule] = found
        if len(told) == len(rules):
            return [told[rule.rule] for rule in rules]
        target *= 2


def _judged(rule: _Repeated[Drawn], drawn: Sequence[Drawn], number: int) -> Finding:
    seen = look(rule.values(drawn), number, systematic=rule.systematic)
    outcome = at_most(seen, rule.limit)
    sentence = (
        f"{rule.what} {rule.show(seen.value)} [{rule.show(seen.low)}, {rule.show(seen.high)}] "
        f"over {len(drawn)} processes, {rule.show(rule.limit)} is allowed"
    )
    if outcome == "undecided":
        sentence += (
            "; the difference lies inside the noise of this machine, and time was up: give a "
            "longer --time-limit, a quieter machine or another limit"
        )
    return Finding(
        rule=rule.rule,
        outcome=outcome,
        limit=rule.limit,
        seen=seen,
        unit=rule.unit,
        repeats=len(drawn),
        sentence=sentence,
    )
