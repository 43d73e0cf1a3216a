"""Records and measurements in; HTML, Markdown, CSV and JSON out."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from deploy.report.build import Finished, build_results
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
    written before anything is drawn, so nothing that fails later loses it.

    Returns:
        The path of ``report.html``.

    Raises:
        MissingExtraError: if the extra ``report`` is not installed; the other files are written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "results.json", msgspec.json.format(msgspec.json.encode(results), indent=2))
    _write(folder / "results.csv", to_csv(results).encode())
    _write(folder / "report.md", to_markdown(results).encode())
    page = folder / "report.html"
    _write(page, to_html(results).encode())
    return page


def _write(path: Path, content: bytes) -> None:
    """Write a file aside and rename it into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
