"""What is usual for a site, by its own past: a median, and how far from it a number may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

__all__ = ["Usual", "slope", "usual"]

#: Of a normal distribution the median absolute deviation times this is the standard deviation.
_TO_DEVIATION = 1.4826


@dataclass(frozen=True)
class Usual:
    """Of numbers of the past, which a single odd night does not move."""

    median: float
    deviation: float

    def highest(self, deviations: float, least: float) -> float:
        """The highest number that is no jump: `deviations` above the median, and `least` above it at least."""
        return self.median + max(deviations * self.deviation, least)


def usual(values: Sequence[float]) -> Usual:
    """Median and median absolute deviation of one number at least."""
    middle = median(values)
    return Usual(middle, _TO_DEVIATION * median(abs(value - middle) for value in values))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y changes when x grows by one: the median over all pairs (Theil and Sen), which single points do not
    bend. `points` are few: it takes the square of their number."""
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for position, earlier in enumerate(points)
        for later in points[position + 1 :]
        if later[0] != earlier[0]
    ]
    return median(slopes) if slopes else 0.0
