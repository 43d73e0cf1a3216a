"""Where the labels of points go, so that no label lies on another, a mark or the frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in pixels, y upwards."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Say whether two boxes share more than an edge."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )

    def holds(self, other: Box) -> bool:
        """Say whether ``other`` lies inside, edges allowed."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.bottom <= other.bottom
            and other.top <= self.top
        )


# Right first, as text is read; then the other sides; corners last.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_GAPS = (9.0, 16.0, 26.0, 38.0, 52.0)


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    marks: Sequence[Box],
    lines: Sequence[Box],
    frame: Box,
) -> list[Box | None]:
    """Return a box for every label, or None for one that fits nowhere near its point.

    Greedy, in the order given: the first free place of a few near the point, nearest first; where
    there is none, the first that covers lines alone.

    Args:
        points: the points to label, in pixels.
        sizes: width and height of each label.
        marks: what no label may cover.
        lines: what a label covers only for want of another place.
        frame: where every label must lie.
    """
    taken = list(marks)

    def is_free(box: Box, others: Sequence[Box]) -> bool:
        return frame.holds(box) and not any(box.overlaps(other) for other in others)

    placed: list[Box | None] = []
    for point, size in zip(points, sizes, strict=True):
        places = list(_candidates(point, size))
        best = (box for box in places if is_free(box, [*taken, *lines]))
        good = (box for box in places if is_free(box, taken))
        box = next(best, next(good, None))
        placed.append(box)
        if box is not None:
            taken.append(box)
    return placed


def _candidates(point: tuple[float, float], size: tuple[float, float]) -> Iterator[Box]:
    (x, y), (width, height) = point, size
    for gap in _GAPS:
        for right, up in _DIRECTIONS:
            corner = 0.7 if right and up else 1.0
            left = (
                x + right * gap * corner - (width if right < 0 else width / 2 if right == 0 else 0)
            )
            bottom = y + up * gap * corner - (height if up < 0 else height / 2 if up == 0 else 0)
            yield Box(left, bottom, left + width, bottom + height)
