"""The recipes that ship with the package: known without reading one, so that --help can name them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that ship with the package, by name."""
    folder = Path(str(resources.files("compress"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
