"""``lightship check``: the gate of a build."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from deploy.cli.command import ended_by_sigterm, print_json
from deploy.cli.options import (
    FILE,
    FILE_OR_FOLDER,
    json_option,
    public_key_option,
    require_harmless_models,
    require_place,
    signatures_of,
    size_asked,
    trust_model_option,
)
from deploy.errors import UserError

# Everything but click is imported inside the commands: --help answers at once.


@click.command("check")
@click.argument("bundle", type=FILE_OR_FOLDER)
@click.option(
    "--max-drop-points", type=click.FloatRange(min=0), help="Accuracy it may lose to the baseline."
)
@click.option(
    "--min-accuracy", type=click.FloatRange(0, 1), help="Fraction of samples that has to be right."
)
@click.option("--max-size", metavar="SIZE", help="Of the file or folder, such as 100kB.")
@click.option(
    "--max-p50-ratio", type=click.FloatRange(min=0), help="Median time over that of the baseline."
)
@click.option(
    "--max-p50-ms", type=click.FloatRange(min=0), help="Median time of one sample on this machine."
)
@click.option("--max-peak-memory", metavar="SIZE", help="Resident, of a new process.")
@click.option("--require-int8", is_flag=True, help="A layer has to run as an int8 kernel.")
@click.option("--baseline", type=FILE_OR_FOLDER, help="The bundle or ONNX file to compare with.")
@click.option("--data", type=FILE, help=".npz with x and y.  [default: what its run measured]")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads.  [default: as it was measured]"
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0),
    default=300.0,
    show_default=True,
    help="Seconds until it is given up to tell a difference from noise.",
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--junit", type=FILE, help="Write JUnit XML.")
@click.option("--markdown", type=FILE, help="Write Markdown (also to $GITHUB_STEP_SUMMARY).")
@public_key_option
@trust_model_option
@json_option
def check_command(
    bundle: Path,
    max_size: str | None,
    max_peak_memory: str | None,
    baseline: Path | None,
    data: Path | None,
    threads: int | None,
    time_limit: float,
    seed: int,
    junit: Path | None,
    markdown: Path | None,
    public_key: Path | None,
    trust_model: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Hold BUNDLE (or an ONNX file) to limits: the gate of a build.

    Exit codes: 0 all limits kept, 3 one is not, 4 a difference inside the noise could not be told
    within the time limit or with these samples, 2 a mistake of yours, 1 a bug of ours.

    \b
    lightship check model.lship --max-size 500kB --max-drop-points 0.5
    lightship check model.lship --baseline base.lship --data test.npz \\
        --max-drop-points 0.5 --max-p50-ratio 0.9 --junit check.xml
    """
    import os

    import msgspec

    from deploy.bundle.container import write_whole
    from deploy.bundle.opened import is_bundle
    from deploy.check import formats
    from deploy.check.rules import Limits
    from deploy.check.run import check
    from deploy.record import SessionOptions

    read = (bundle, baseline, data, public_key, *signatures_of(bundle, baseline))
    require_place("--junit", junit, *read)
    require_place("--markdown", markdown, *read, junit)
    sizes = {
        "max_size_bytes": size_asked("--max-size", max_size),
        "max_peak_memory_bytes": size_asked("--max-peak-memory", max_peak_memory),
    }
    try:
        limits = msgspec.convert({**asked, **sizes}, Limits)
    except msgspec.ValidationError as error:
        raise UserError(f"check: {error}") from error
    given = [path for path in (bundle, baseline) if path is not None]
    loose = [path for path in given if not is_bundle(path, public_key=public_key)]
    require_harmless_models(trust_model, SessionOptions(threads=threads or 1), *loose)
    with ended_by_sigterm():
        checked = check(
            bundle,
            limits,
            baseline=baseline,
            data=data,
            public_key=public_key,
            threads=threads,
            time_limit_s=time_limit,
            seed=seed,
            on_progress=lambda what: click.echo(what, err=True),
        )
    if junit is not None:
        write_whole(junit, formats.to_junit(checked))
    if markdown is not None:
        write_whole(markdown, formats.to_markdown(checked).encode())
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            with Path(summary).open("a", encoding="utf-8") as file:
                file.write(formats.to_markdown(checked) + "\n")
        except OSError as error:
            raise UserError(
                f"GITHUB_STEP_SUMMARY: {summary} cannot be written ({error.strerror})"
            ) from error
    if as_json:
        print_json(checked)
    else:
        for line in formats.to_lines(checked):
            click.echo(line)
    sys.exit({"passed": 0, "failed": 3, "undecided": 4}[checked.outcome])
