"""Shows how a run gets on: live bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Any

from typing_extensions import Self

from compress.train.fit import EpochEnd
from compress.train.hearing import BatchesDone, hearing_batches
from compress.train.tune import Search
from deploy.errors import needs_extra
from deploy.goals import delta_bounds, delta_number, delta_unit, score
from deploy.record import Goal
from deploy.report.results import Results

_ANY_WIDTH = 1000


class ConsoleWatcher:
    """A watcher that draws with rich: which variant, which epoch, how long still."""

    def __init__(self, variants: int) -> None:
        with needs_extra("compress"):
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

        self._console = Console(stderr=True, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            refresh_per_second=4,  # drawing takes milliseconds of the processor that trains
        )
        self._overall = self._bars.add_task("variants", total=variants, note="")
        self._hearing = contextlib.ExitStack()
        self._current: Any = None
        self._variant = ""
        self._began = 0.0
        self._tenth = 0

    def __enter__(self) -> Self:
        self._bars.start()
        if self._console.is_terminal:  # elsewhere a line an epoch is enough
            self._hearing.enter_context(hearing_batches(self.batches_done))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hearing.close()
        self._bars.stop()

    def begins(self, variant: str, *, epochs: int) -> None:
        """Open a bar for a variant."""
        self._variant, self._began = variant, time.monotonic()
        self._replace(variant, total=epochs or None, note="training" if epochs else "working")
        if not self._console.is_terminal:
            self._console.print(f"{variant}: begins")

    def batches_done(self, done: BatchesDone) -> None:
        """Move the variant's bar on inside an epoch."""
        if self._current is None:
            return
        loss = "" if done.loss is None else f"  loss {done.loss:.4f}"
        self._bars.update(
            self._current,
            completed=done.epoch - 1 + done.batches / done.of,
            note=f"batch {done.batches}/{done.of}{loss}",
        )

    def epoch_ended(self, epoch: EpochEnd) -> None:
        """Move the variant's bar on to the end of an epoch."""
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in epoch.metrics.items())
        # A terminal of 80 columns has room for one number beside the time that is left.
        # The task's metric stands behind the loss; that of the validation samples goes before.
        shown = next(
            name for name in (*reversed(epoch.metrics), "loss") if not name.endswith("loss")
        )
        note = f"{shown} {epoch.metrics[shown]:.4f}"
        if epoch.epoch == epoch.epochs:
            note += ", exporting"
        self._bars.update(self._current, completed=epoch.epoch, note=note)
        if not self._console.is_terminal:
            left = epoch.seconds * (epoch.epochs - epoch.epoch)
            self._console.print(
                f"{self._variant}: epoch {epoch.epoch}/{epoch.epochs}  {numbers}  {left:.0f} s left",
                soft_wrap=True,
            )

    def ended(self, variant: str, *, reused: bool) -> None:
        """Tick a variant off."""
        how = "done before" if reused else f"{time.monotonic() - self._began:.1f} s"
        self._console.print(f"✓ {variant}  [dim]{how}[/dim]", markup=True)
        self._bars.advance(self._overall)
        self._replace(None)

    def search_advanced(self, what: str, done: int, total: int) -> None:
        """Move the bar of one stage of a variant's search; elsewhere say that the stage is over."""
        self._bars.update(self._current, completed=done, total=total, note=what)
        if not self._console.is_terminal and done == total:
            self._console.print(f"{self._variant}: {what}: done", soft_wrap=True)

    def bench_advanced(self, done: int, total: int) -> None:
        """Move the bar of the latency measurement."""
        if self._current is None:
            self._replace("timing all variants, interleaved", total=total)
        self._bars.update(self._current, completed=done)
        if not self._console.is_terminal and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self._console.print(f"timing all variants, interleaved: {10 * self._tenth} %")

    def _replace(
        self, description: str | None, *, total: int | None = None, note: str = ""
    ) -> None:
        if self._current is not None:
            self._bars.remove_task(self._current)
        self._current = (
            None
            if description is None
            else self._bars.add_task(description, total=total, note=note)
        )


class SearchWatcher:
    """Says how a search gets on: a line a trial, and how many are left."""

    def __init__(self) -> None:
        with needs_extra("compress"):
            from rich.console import Console

        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._told: set[int] = set()
        self._here = 0
        self._began = time.monotonic()

    def trial_ended(self, found: Search) -> None:
        """Say what became of the trial that is new."""
        self._here += 1  # what an earlier command did took none of our time
        left = (time.monotonic() - self._began) / self._here * (found.planned - len(found.trials))
        for trial in found.trials:
            if trial.number in self._told:
                continue
            self._told.add(trial.number)
            came_to = (
                f"{found.metric} {trial.value:.4f}" if trial.value is not None else trial.state
            )
            if trial.state == "pruned":
                came_to += f" after epoch {len(trial.epochs)}"
            best = "  best so far" if trial.number == found.best else ""
            values = "  ".join(f"{place} {_short(value)}" for place, value in trial.values.items())
            self._console.print(
                f"trial {trial.number}/{found.planned}: {came_to}{best}  {values}"
                f"{'  ' + trial.reason if trial.reason else ''}  {left:.0f} s left",
                markup=False,
            )

    def print_table(self, found: Search) -> None:
        """Print the best trials on stdout, best first."""
        finished = [trial for trial in found.trials if trial.value is not None]
        sign = -1 if found.larger_is_better else 1
        finished.sort(key=lambda trial: (sign * (trial.value or 0.0), trial.number))
        for trial in finished[:5]:
            values = "  ".join(f"{place} {_short(value)}" for place, value in trial.values.items())
            print(f"{found.metric} {trial.value:.4f}  trial {trial.number}  {values}")
        pruned = sum(trial.state == "pruned" for trial in found.trials)
        failed = sum(trial.state == "failed" for trial in found.trials)
        if not finished:
            print("no trial has been carried out to its end yet")
        print(f"{len(finished)} finished, {pruned} pruned, {failed} failed")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(results: Results) -> None:
    """Print one line per variant on stdout; the intervals are against the baseline."""
    with needs_extra("compress"):
        from rich import box
        from rich.console import Console
        from rich.measure import Measurement
        from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, title=results.title)
    table.add_column("variant", no_wrap=True)
    goal = results.goal
    change = f"Δ {delta_unit(goal)}".rstrip()
    for heading in ("kB", "gzip kB", "packed kB", goal.metric, change, "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for variant in results.variants:
        delta = (
            variant.baseline_delta,
            variant.baseline_delta_low,
            variant.baseline_delta_high,
        )
        speed = (variant.speedup, variant.speedup_low, variant.speedup_high)
        table.add_row(
            variant.name,
            f"{variant.size_bytes / 1e3:,.1f}",
            f"{variant.gzip_bytes / 1e3:,.1f}",
            f"{variant.packed_bytes / 1e3:,.1f}" if variant.packed_bytes else "",
            score(goal, variant.score),
            _difference(goal, delta),
            _interval(speed, ".2f") if variant.parent else "1",
        )
    # A number that is cut off is worse than a line that wraps.
    console = Console(highlight=False)
    unbounded = console.options.update(max_width=_ANY_WIDTH)
    console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table, crop=False)


def _difference(goal: Goal, estimate: tuple[float | None, float | None, float | None]) -> str:
    """Return a difference with its interval; nothing if it was not measured."""
    value, low, high = estimate
    if value is None or low is None or high is None:
        return ""
    return f"{delta_number(goal, value, low, high)} {delta_bounds(goal, value, low, high)}"


def _interval(estimate: tuple[float | None, float | None, float | None], form: str) -> str:
    """Return an estimate with its interval, with a true minus; nothing if it was not measured."""
    value, low, high = estimate
    if value is None or low is None or high is None:
        return ""
    return f"{value:{form}} [{low:{form}}, {high:{form}}]".replace("-", "−")
