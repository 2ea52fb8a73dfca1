"""What is odd for a site: bounds as data, medians that one odd night does not move."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.quality.checks.history import Measure, read_bounds

NIGHTS = [1000.0, 1010.0, 990.0, 1005.0, 995.0, 1000.0, 1002.0]


def test_the_file_of_bounds_says_what_is_compared() -> None:
    bounds = read_bounds()
    assert (bounds.nights, bounds.least_nights) == (14, 5)
    assert set(bounds.measures) == {"mapping_rate", "lines", "rows_removed", "dead_letters"}
    assert {measure.side for measure in bounds.measures.values()} == {"above", "below"}


def test_a_fall_is_odd_and_a_rise_is_not() -> None:
    lines = read_bounds().measures["lines"]
    assert lines.is_odd(700, NIGHTS)
    assert not lines.is_odd(900, NIGHTS), "within a fifth"
    assert not lines.is_odd(5000, NIGHTS)


def test_rejected_lines_jump() -> None:
    letters = read_bounds().measures["dead_letters"]
    assert letters.is_odd(50, [0, 0, 1, 0, 0, 0])
    assert not letters.is_odd(9, [0, 0, 1, 0, 0, 0])


@given(st.lists(st.floats(0, 1e6), min_size=5, max_size=14), st.floats(0, 1e9))
def test_one_odd_night_moves_the_room_little(past: list[float], odd: float) -> None:
    measure = Measure(deviations=5, side="above", least=1)
    usual_one = max(past)
    if not measure.is_odd(usual_one, past):
        assert not measure.is_odd(min(past), [*past, odd])
