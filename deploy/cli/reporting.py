"""``lightship report``: a run's page anew."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.cli.command import print_json
from deploy.cli.options import (
    FILE,
    FOLDER,
    json_option,
)

# Everything but click is imported inside the commands: --help answers at once.


@click.command("report")
@click.argument("run", type=FOLDER)
@click.option(
    "--add",
    "added",
    type=FILE,
    multiple=True,
    help="What bench --json printed elsewhere; the file's name becomes the machine's.",
)
@json_option
def report_command(run: Path, added: tuple[Path, ...], as_json: bool) -> None:
    """Write the report of a finished RUN again, from its results.json.

    \b
    lightship report runs/demo
    lightship report runs/demo --add pi4.json
    """
    from deploy.report import write_report
    from deploy.report.machines import add_machine, read_bench
    from deploy.report.results import read_results

    results = read_results(run / "results.json")
    for path in added:
        results = add_machine(results, path.stem, read_bench(path))
    write_report(results, run)
    if as_json:
        print_json(results)
    else:
        click.echo(run / "report.html")
