"""What the figures of a report are drawn on: bare axes, turned into SVG of the page's colours and fonts."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from deploy.errors import needs_extra

_TEXT = 12.0  # px, as large as the page's small print

# Stand-ins that no figure uses otherwise, put in place of by the page's own colours.
INK, MUTED, _GRID, ACCENT, PAPER = "#010101", "#020202", "#030303", "#040404", "#050505"
_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    _GRID: "var(--line)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
}


@contextlib.contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Draw as matplotlib comes, whatever the user's matplotlibrc says, and the same every time."""
    with needs_extra("report"):
        import matplotlib as mpl
    with mpl.rc_context(), warnings.catch_warnings():
        # It measures with a font of its own; the page is shown in one that has the letters.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
        mpl.rcdefaults()
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["svg.hashsalt"] = "lightship"
        yield


def bare_axes(size: tuple[int, int]) -> tuple[Any, Any]:
    """Return a matplotlib figure of that many pixels and its axes, horizontal grid alone."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    left, right, bottom, top = 46, 12, 46, 30
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )
    figure.patch.set_visible(False)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_GRID, linewidth=1)
    axes.tick_params(length=0, labelsize=_TEXT, labelcolor=MUTED, pad=6)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
        spine.set_linewidth(1)
    return figure, axes


def name_axes(axes: Any, x: str, y: str) -> None:
    """Write what the axes are: x below, y above its end, where it needs no turned head."""
    axes.set_xlabel(x, color=MUTED, fontsize=_TEXT, labelpad=8)
    axes.annotate(
        y,
        (0, 1),
        xycoords="axes fraction",
        xytext=(-36, 12),
        textcoords="offset points",
        color=MUTED,
        fontsize=_TEXT,
    )


def printable(text: str) -> str:
    """Replace what XML cannot hold."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def to_svg(
    figure: Any, *, prefix: str, title: str, description: str, tooltips: dict[str, str]
) -> str:
    """Return a figure as SVG for the inside of an HTML page.

    Args:
        figure: a matplotlib figure.
        prefix: put before every id, so that figures of one page do not share any.
        title: read out as the figure's name.
        description: read out after it.
        tooltips: text by the ``gid`` of the artist it is shown on.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    root = ET.fromstring(text.getvalue())  # noqa: S314  (matplotlib wrote it a line ago)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in list(element.attrib):
            value = element.attrib.pop(name)
            element.set(name.rpartition("}")[2], _rewritten(name, value, prefix))
    for child in list(root):
        # The one says who drew it, the other styles every element of the page.
        if child.tag == "metadata" or child.find("style") is not None:
            root.remove(child)
    for identifier, tooltip in tooltips.items():
        group = root.find(f".//g[@id='{prefix}-{identifier}']")
        if group is not None:
            group.set("class", "point")
            _first(group, "title", tooltip)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update(
        {"role": "img", "aria-labelledby": f"{prefix}-title {prefix}-text", "class": "plot"}
    )
    _first(root, "desc", description).set("id", f"{prefix}-text")
    _first(root, "title", title).set("id", f"{prefix}-title")
    return ET.tostring(root, encoding="unicode")


def _first(parent: ET.Element, tag: str, text: str) -> ET.Element:
    element = ET.Element(tag)
    element.text = printable(text)
    parent.insert(0, element)
    return element


def _rewritten(name: str, value: str, prefix: str) -> str:
    """Return an attribute's value with ids of its own, the page's font and the page's colours."""
    if name == "id":
        return f"{prefix}-{value}"
    if name.endswith("href"):
        return value.replace("#", f"#{prefix}-", 1)
    if name == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-")
    if name != "style":
        return value
    for stand_in, colour in _COLOURS.items():
        value = value.replace(stand_in, colour)
    # Families are quoted and hold commas, never a semicolon.
    value = re.sub(r"font-family:[^;]*;?", "", value)
    return re.sub(r"font:([^;]*?)([\d.]+px)[^;]*", _longhand, value)


def _longhand(font: re.Match[str]) -> str:
    """Return weight and size of a ``font`` shorthand, which older matplotlibs write."""
    weight = re.search(r"bold|\d{3}", font.group(1))
    return f"font-size: {font.group(2)}" + (f"; font-weight: {weight.group()}" if weight else "")
