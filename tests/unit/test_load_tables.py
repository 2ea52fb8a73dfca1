"""What the commands print of a load's rules about rows: names of concepts and numbers."""

from __future__ import annotations

import io
from collections import Counter

from pipeline.commands.tables import print_load_report
from pipeline.commands.terminal import Terminal
from pipeline.quality.report import Duplicates, LoadReport, ValueCheck


def printed(**more) -> str:
    report = LoadReport((1,), {"Observation": Counter(lines=9, loaded=9)}, {}, {}, {}, (), 0, **more)
    stream = io.StringIO()
    print_load_report(Terminal(file=stream, width=120), report)
    return stream.getvalue()


def test_numbers_that_rules_found_are_printed_by_concept_unit_and_what_became_of_them() -> None:
    checks = (
        ValueCheck("value_negative", "null", "Body weight", "kg", 1200),
        ValueCheck("unit_converted", "converted", "Body temperature", "[degF]", 7),
        ValueCheck("value_implausible", "reported", None, None, 3),
    )
    text = printed(value_checks=checks)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "Body weight 1,200 kg below 0 set to NULL" in rows
    assert "Body temperature 7 [degF] in another unit than the standard one converted" in rows
    assert "– 3 – outside the limits reported" in rows


def test_many_are_summed_up() -> None:
    checks = tuple(ValueCheck("value_implausible", "reported", f"Test {number}", None, 2) for number in range(15))
    text = printed(value_checks=checks)
    assert "Test 11" in text
    assert "Test 12" not in text
    assert "And 6 numbers of 3 more concepts and units." in text


def test_duplicates_are_a_sentence_a_rule() -> None:
    text = " ".join(printed(duplicates=(Duplicates("twice", "condition_occurrence", 1500, 1501),)).split())
    assert "1,500 facts of condition_occurrence are there from two resources or more (1,501 rows too many)" in text


def test_nothing_is_printed_where_nothing_was_found() -> None:
    text = printed()
    assert "rules about numbers" not in text
    assert "two resources" not in text
