"""What the soak calls a leak, and its picture; the soak itself is `python -m benchmarks.soak` (docs/performance.md)."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from benchmarks.soak_report import Findings, Sample, _growths, plot

MB = 2**20


def samples(rss: float = 0, descriptors: float = 0, connections: float = 0) -> list[Sample]:
    """Half an hour of a service that warms up and works by fits; arguments: what is added each minute."""
    return [
        Sample(
            at=minute * 60,
            load_average=1.0,
            rss={"daemon": int((min(100 + 10 * minute, 150) + rss * minute) * MB)},
            descriptors={"daemon": int(20 + descriptors * minute + 5 * (minute % 3))},
            threads={"daemon": 10 + minute % 2},
            connections={"Dagster": int(4 + connections * minute + minute % 4)},
            runs=minute % 5,
            published=minute,
            open_exports=3,
        )
        for minute in range(31)
    ]


@pytest.mark.parametrize(
    ("grows", "leaks"),
    [
        ({}, []),
        ({"rss": 0.2}, []),
        ({"rss": 5}, ["RSS"]),
        ({"descriptors": 1}, ["descriptors"]),
        ({"connections": 1}, ["connections"]),
    ],
    ids=str,
)
def test_what_grows_after_the_warm_up_is_a_leak(grows: dict[str, float], leaks: list[str]) -> None:
    found = _growths(samples(**grows), seconds=1800)
    assert [growth.what for growth in found if growth.is_leak] == leaks
    assert {growth.what for growth in found} == {"RSS", "descriptors", "threads", "connections"}


def test_the_picture_is_one_and_says_who_is_who() -> None:
    picture = ET.fromstring(plot(samples(), Findings(gaps={"site_01/g": 60.0, "site_02/g": 90.0})))
    texts = [element.text for element in picture.iter() if element.text]
    assert {"daemon", "open descriptors", "published exports", "02"} <= set(texts)
