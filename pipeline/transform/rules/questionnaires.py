"""Questionnaire responses: what was asked, and what was answered."""

from __future__ import annotations

import re
from typing import Any

import orjson
import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import issue
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.dates import starting
from pipeline.transform.rules.declaration import dated, rule, used_fact
from pipeline.transform.rules.observations import (
    VALUE_COLUMNS,
    VALUE_CONSTANTS,
    VALUE_OPTIONAL,
    VALUE_WRITES,
    is_result_text,
    observation_value,
)

_LOINC = "http://loinc.org"
_LOINC_CODE = re.compile(r"(?:.*/)?([0-9]{1,7})-([0-9])")

_QUESTION = ["questionnaire", "link_id", "item_code", "questionnaire_codes"]


@rule(
    reads=("code", "item_code", "link_id", "questionnaire", "questionnaire_key"),
    writes=("code", "questionnaire_codes", used_fact("questionnaire_codes")),
    facts=("questionnaire_codes",),
    options=("questionnaire_codes",),
)
def question(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds code: the item's own codings, the Questionnaire's, a LOINC code in the linkId, the linkId itself."""
    key = "questionnaire_key"
    frame = derivation.with_fact(frame, key, "questionnaire_codes", "questionnaire_codes")
    missing = pl.col("questionnaire_codes").is_null()
    frame = used(frame, "questionnaire_codes", key, pl.col(key).is_not_null(), missing)
    distinct = frame.select(_QUESTION).unique(maintain_order=True)
    by_loinc = derivation.options.questionnaire_codes == "link_id"
    numbers = [
        derivation.sets.add_concept({"coding": _codings(*row, by_loinc=by_loinc)}) for row in distinct.iter_rows()
    ]
    codes = distinct.with_columns(pl.Series("code", numbers, dtype=pl.Int32))
    return frame.drop("code").join(codes, on=_QUESTION, how="left", nulls_equal=True, maintain_order="left")


def _codings(
    questionnaire: str | None, link_id: str | None, item_code: str | None, codes: str | None, *, by_loinc: bool
) -> list[dict[str, Any]]:
    """The codings of a question in the order in which they count. `item_code`: see converters.item_code."""
    own: dict[str, list[dict[str, Any]]] = orjson.loads(item_code) if item_code else {}
    found = [*own.get("extension", ())]
    if link_id:
        found += (orjson.loads(codes) if codes else {}).get(link_id, ())
        loinc = loinc_code(link_id) if by_loinc else None
        if loinc:
            found.append({"system": _LOINC, "code": loinc})
        found.append({"system": questionnaire, "code": link_id})
    return found + own.get("definition", [])


def loinc_code(link_id: str) -> str | None:
    """The LOINC code at the end of a linkId such as `/82667-7/82669-3`; None where the check digit does not fit."""
    match = _LOINC_CODE.fullmatch(link_id)
    if not match:
        return None
    total = 0
    for position, digit in enumerate(reversed(match[1])):
        value = int(digit) * (2 if position % 2 == 0 else 1)
        total += value // 10 + value % 10
    return f"{match[1]}-{match[2]}" if (10 - total % 10) % 10 == int(match[2]) else None


@rule(
    reads=("authored", *VALUE_COLUMNS),
    optional=VALUE_OPTIONAL,
    writes=(
        dated("start"),
        "value_string",
        "interpretation",
        "is_data_absent",
        issue(IssueCode.ANSWER_TEXT_DROPPED),
        VALUE_WRITES,
    ),
    dates=("authored",),
    value_maps=("interpretation", "value_text"),
    priorities=("unit", "value"),
    constants=VALUE_CONSTANTS,
    options=("data_absent", "interpretation_as_value", "questionnaire_text"),
)
def answer(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Date and value. Free text is dropped unless it is a number or a result that the value map `value_text` has, or the site
    keeps it (option questionnaire_text)."""
    if derivation.options.questionnaire_text == "drop":
        is_text = (~is_result_text(frame["value_string"], derivation)).fill_null(False)
        frame = frame.with_columns(
            is_text.alias(issue(IssueCode.ANSWER_TEXT_DROPPED)),
            pl.when(~is_text).then("value_string").alias("value_string"),
        )
    frame = frame.with_columns(
        pl.lit(None, dtype=pl.Int32).alias("interpretation"), pl.lit(False).alias("is_data_absent")
    )
    return observation_value(starting(frame, derivation, "authored"), derivation)
