"""Records and measurements in; HTML, Markdown, CSV and JSON out."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from deploy.errors import UserError
from deploy.report.build import Finished, build_results, judged
from deploy.report.html import to_html
from deploy.report.markdown import to_markdown
from deploy.report.results import (
    Data,
    Reproduce,
    Results,
    Training,
    Variant,
    json_schema,
    read_results,
)
from deploy.report.table import to_csv

__all__ = [
    "Data",
    "Finished",
    "Reproduce",
    "Results",
    "Training",
    "Variant",
    "build_results",
    "json_schema",
    "read_results",
    "to_html",
    "to_markdown",
    "write_report",
]


def write_report(results: Results, folder: Path) -> Path:
    """Write ``results.json``, ``results.csv``, ``report.md`` and ``report.html`` into ``folder``.

    Each file appears whole or not at all; one of the same name is replaced. What was measured is
    written before anything is drawn, so nothing that fails later loses it. Front and verdict are
    written as today's rules have them, since the report says those rules.

    Returns:
        The path of ``report.html``.

    Raises:
        MissingExtraError: if the extra ``report`` is not installed; the other files are written.
        UserError: if a folder stands where one of the files has to go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = judged(results)
    _write(folder / "results.json", msgspec.json.format(msgspec.json.encode(results), indent=2))
    _write(folder / "results.csv", to_csv(results).encode())
    _write(folder / "report.md", to_markdown(results).encode())
    page = folder / "report.html"
    _write(page, to_html(results).encode())
    return page


def _write(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place.

    Raises:
        UserError: if there is a folder in its place.
    """
    if path.is_dir():
        raise UserError(f"{path}: must be a file, got a folder; move it out of the way")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
