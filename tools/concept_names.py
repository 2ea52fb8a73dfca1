"""Names of concepts for the pages of docs/: of the vocabulary of the golden cases, and of the demonstration's."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["concept_names", "concept_of_code", "named"]

_ROOT = Path(__file__).resolve().parents[1]
_GOLDEN = _ROOT / "tests" / "golden" / "vocabulary" / "concepts.csv"
_DEMO = _ROOT / "mappings" / "demo_vocabulary" / "CONCEPT.csv"

#: What the golden vocabulary says of concepts beside their names.
_REMARK = re.compile(r" \((?:code invented|place of the fixed concept)\)$")


@cache
def concept_names() -> Mapping[int, str]:
    """concept_id → name. Where the two differ the golden cases' counts: their rows are shown."""
    found = {}
    for file, delimiter in ((_DEMO, "\t"), (_GOLDEN, ",")):
        with file.open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream, delimiter=delimiter):
                found[int(line["concept_id"])] = _REMARK.sub("", line["concept_name"])
    return found


@cache
def _codes() -> Mapping[str, int]:
    with _GOLDEN.open(encoding="utf-8", newline="") as stream:
        return {
            f"{line['vocabulary_id']}:{line['concept_code']}": int(line["concept_id"])
            for line in csv.DictReader(stream)
        }


def concept_of_code(target: int | str) -> int | None:
    """The concept of a mapping's target: its id, or that of `VOCABULARY:code` in the golden vocabulary."""
    return target if isinstance(target, int) else _codes().get(target)


def named(concept: int | str) -> str:
    """`8507 MALE`, `SNOMED:6915006 …`; what has no known name as it is."""
    text = str(concept)
    number = concept_of_code(int(text) if text.lstrip("-").isdigit() else text)
    name = concept_names().get(number) if number else None
    if name and not text.isdigit():  # the code is real, whatever id the golden vocabulary has for it
        name = re.sub(r" \((?:invented id|id invented)\)$", "", name)
    return f"{text} {name}" if name else text
