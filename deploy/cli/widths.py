"""``lightship widths``: which numbers of channels are worth having on a machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.command import print_json, timing_bar
from deploy.cli.options import FILE, json_option, require_picture, require_place
from deploy.errors import UserError

# Everything but click is imported inside the command: --help answers at once.
if TYPE_CHECKING:
    from deploy.widths import WidthTable


@click.command("widths")
@click.option("--from", "table", type=FILE, help="Show this table instead of measuring.")
@click.option(
    "--conv",
    metavar="WIDTHS",
    help="Channels of convolutions: FROM:TO:STEP or a list such as 16,20,24, or none.  "
    "[default: 4:128:4]",
)
@click.option(
    "--dense", metavar="WIDTHS", help="Units of dense layers, alike.  [default: 16:512:16]"
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "int8"]),
    help="Only this one.  [default: both]",
)
@click.option(
    "--size", type=click.IntRange(min=1), help="Height and width of images.  [default: 14]"
)
@click.option(
    "--kernel", type=click.IntRange(min=1), help="Height and width of kernels.  [default: 3]"
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads a session.  [default: 1]")
@click.option("--processes", type=click.IntRange(min=5), help="Repetitions.  [default: 10]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="[default: 0]")
@click.option("--on", "host", metavar="USER@HOST", help="Measure there, over the system's ssh.")
@click.option(
    "--remote-command",
    default="lightship",
    show_default=True,
    help="How lightship is called there: a line of its shell.",
)
@click.option("--ssh-config", type=FILE, help="A configuration file for ssh.")
@click.option("--out", "-o", type=FILE, help="Write the table to a file as well.")
@click.option("--plot", type=FILE, help="Draw the staircases, as .svg, .png or .pdf.")
@json_option
def widths_command(
    table: Path | None,
    host: str | None,
    remote_command: str,
    ssh_config: Path | None,
    out: Path | None,
    plot: Path | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure how long layers of each width take on this machine: which widths are worth having.

    Time is a staircase in channels, and of widths on one step only the largest, marked *, is worth
    having. A few minutes in which nothing else should run. Needs only what a device has; the file
    that --out writes there is read on the host too.

    \b
    lightship widths --out pi4-widths.json
    lightship widths --on pi@pi4.local --out pi4-widths.json
    lightship widths --from pi4-widths.json --plot pi4.svg
    """
    from deploy.bundle.container import write_whole
    from deploy.widths import plot_widths, read_widths

    require_place("--out", out, table)
    require_picture("--plot", plot, table, out)
    given = {name: value for name, value in asked.items() if value is not None}
    if table is not None:
        if host is not None or given:
            raise UserError("widths: --from shows a table as it is; leave what to measure out")
        found = read_widths(table)
    elif host is not None:
        from deploy.remote import Remote, widths_on

        _settings(given)  # what cannot be measured is said before the way there
        there = Remote(host=host, command=remote_command, ssh_config=ssh_config)
        found = widths_on(
            there, given, on_line=lambda line: click.echo(f"{host}: {line}", err=True)
        )
    else:
        found = _measured_here(given)
    if out is not None:
        import msgspec

        write_whole(out, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    if plot is not None:
        plot_widths(found, plot)
    if as_json:
        print_json(found)
        return
    for line in _lines(found):
        click.echo(line)
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)


def _measured_here(given: dict[str, Any]) -> WidthTable:
    from datetime import datetime, timezone

    from deploy.widths import measure_widths

    settings = _settings(given)
    with timing_bar() as advance:
        return measure_widths(
            settings,
            seed=given.get("seed", 0),
            now=datetime.now(timezone.utc),
            on_progress=advance,
        )


def _settings(given: dict[str, Any]) -> Any:
    """Return what to measure.

    Raises:
        UserError: if there is nothing to measure, or a list of widths is none.
    """
    import msgspec

    from deploy.widths import MeasureWidths

    named: dict[str, Any] = {
        name: _widths(f"--{name}", given[name]) for name in ("conv", "dense") if name in given
    }
    if "precision" in given:
        named["precisions"] = (given["precision"],)
    named |= {name: given[name] for name in ("threads", "processes") if name in given}
    named["probe"] = {name: given[name] for name in ("size", "kernel") if name in given}
    try:
        return msgspec.convert(named, MeasureWidths)
    except msgspec.ValidationError as error:
        raise UserError(f"widths: {error}") from error


def _widths(option: str, text: str) -> tuple[int, ...]:
    """Return the widths that an option lists.

    >>> _widths("--conv", "8:32:8"), _widths("--conv", "20,50"), _widths("--conv", "none")
    ((8, 16, 24, 32), (20, 50), ())
    """
    if text == "none":
        return ()
    try:
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            widths = tuple(range(first, last + 1, step)) if step > 0 else ()
        else:
            widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if not widths or min(widths) < 1 or max(widths) > _WIDEST or len(widths) > _MOST_WIDTHS:
        raise UserError(
            f"{option}: needs FROM:TO:STEP or numbers with commas, 1 to {_WIDEST} and at most "
            f"{_MOST_WIDTHS} of them, or none; got {text!r}"
        )
    return widths


_WIDEST = 4096
_MOST_WIDTHS = 256


def _lines(table: WidthTable) -> Iterator[str]:
    """Yield the table for a terminal: a row a width, a column a precision."""
    from deploy.widths import worthwhile_widths

    where = table.environment
    yield (
        f"{where.cpu} ({where.target}), ONNX Runtime {where.versions.get('onnxruntime', '?')}, "
        f"{table.session.threads} thread{'s' if table.session.threads > 1 else ''}"
    )
    for operator in dict.fromkeys(time.operator for time in table.times):
        times = [time for time in table.times if time.operator == operator]
        columns = list(dict.fromkeys(time.precision for time in times))
        what = f"{table.probe.kernel}×{table.probe.kernel} on {table.probe.size}×{table.probe.size}"
        yield f"{operator}, {what if operator == 'conv' else 'units'}: µs a layer, * worth having"
        yield f"{'width':>7}" + "".join(f"{precision:>12}{'':20}" for precision in columns)
        worth = {precision: worthwhile_widths(table, operator, precision) for precision in columns}
        for width in sorted({time.width for time in times}):
            cells = {time.precision: time.layer_us for time in times if time.width == width}
            row = f"{width:>7}"
            for precision in columns:
                seen = cells.get(precision)
                if seen is None:
                    row += f"{'':32}"
                    continue
                mark = "*" if width in worth[precision] else " "
                row += f"{seen.value:>12.2f} {mark} {f'[{seen.low:.2f}, {seen.high:.2f}]':17}"
            yield row.rstrip()
