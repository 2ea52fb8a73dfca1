"""Devices: which, and from when to when they were used.

A device that a procedure put in and a DeviceUseStatement names is one exposure: the statement's, which knows its end.
"""

from __future__ import annotations

import orjson
import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import MADE_UP, NOT_MADE, issue
from pipeline.transform.rules.base import Derivation, used
from pipeline.transform.rules.dates import ending, given_by_none, starting
from pipeline.transform.rules.declaration import dated, rule, used_fact

_SCHEMA = {
    "summary": pl.String,
    "device_code": pl.Int32,
    "unique_device_id": pl.String,
    "lot_number": pl.String,
    "manufacture_date": pl.String,
}


@rule(
    reads=("code", "device_reference", "contained_device", "lacks_contained"),
    writes=(
        "code",
        "summary",
        "device_code",
        "referenced_device",
        "unique_device_id",
        "lot_number",
        "manufacture_date",
        used_fact("device"),
        issue(IssueCode.REFERENCE_CONTAINED, "device_reference"),
    ),
    facts=("device",),
)
def used_device(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds code, unique_device_id, lot_number and manufacture_date of the contained or the referenced Device.

    A contained one that is not there is an issue.
    """
    frame = frame.with_columns(
        pl.col("lacks_contained").alias(issue(IssueCode.REFERENCE_CONTAINED, "device_reference"))
    )
    return _with_device(frame, derivation).with_columns(pl.coalesce("code", "device_code").alias("code"))


def _with_device(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds device_code, unique_device_id, lot_number and manufacture_date of the contained or the referenced Device."""
    frame = derivation.with_fact(frame, "device_reference", "device", "referenced_device")
    by_reference = pl.col("device_reference").is_not_null()
    frame = used(frame, "device", "device_reference", by_reference, pl.col("referenced_device").is_null())
    frame = frame.with_columns(pl.coalesce("contained_device", "referenced_device").alias("summary"))
    rows = []
    for text in frame["summary"].drop_nulls().unique(maintain_order=True):
        device = orjson.loads(text)
        code = derivation.sets.add_concept(device["code"]) if device["code"] else None
        rows.append((text, code, device["identifier"], device["lot"], device["made"]))
    devices = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    frame = frame.drop("device_code", strict=False)
    return frame.join(devices, on="summary", how="left", maintain_order="left")


#: An odd constant: a device and a person together are one number, which no other resource has.
_MIX = -4417276706812531889
_KEY = (pl.col("device_reference") ^ (pl.col("person_id") * _MIX)).alias("device_of_person")


@rule(reads=("device_reference", "person_id"), writes=("about", "value"))
def device_use(frame: pl.DataFrame, _derivation: Derivation) -> pl.DataFrame:
    """Fact about a device and a person together: the person has used the device, and that is an exposure."""
    return frame.with_columns(_KEY.alias("about"), pl.lit("1").alias("value"))


@rule(
    reads=("device_reference", "contained_device", "person_id", "performed_datetime", "performed_start"),
    writes=(
        *("summary", "device_code", "referenced_device", "unique_device_id", "lot_number", "manufacture_date"),
        *("device_of_person", "used_by_statement", NOT_MADE),
        used_fact("device"),
        used_fact("device_use"),
        dated("start"),
    ),
    dates=("performed_datetime", "performed_start"),
    facts=("device", "device_use"),
)
def focal_device(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """A procedure's device, from its start on: the end of the procedure is not that of the exposure.

    Where a DeviceUseStatement of the same person names the device, that is the exposure and this none.
    """
    frame = _with_device(starting(frame, derivation, "performed_datetime", "performed_start"), derivation)
    frame = derivation.with_fact(frame.with_columns(_KEY), "device_of_person", "device_use", "used_by_statement")
    frame = used(frame, "device_use", "device_of_person", pl.col("device_of_person").is_not_null(), pl.lit(False))
    return frame.with_columns(pl.col("used_by_statement").is_not_null().alias(NOT_MADE))


@rule(
    reads=(
        "timing_datetime",
        "timing_period_start",
        "timing_period_end",
        "timing_bounds_start",
        "timing_bounds_end",
        "timing_event_unusable",
        "timing_event",
        "recorded_on",
        "manufacture_date",
    ),
    writes=(dated("start"), dated("end"), issue(IssueCode.START_IS_MANUFACTURE_DATE), MADE_UP),
    dates=(
        "timing_datetime",
        "timing_period_start",
        "timing_bounds_start",
        "timing_event_unusable",
        "timing_event",
        "recorded_on",
        "manufacture_date",
        "timing_period_end",
        "timing_bounds_end",
    ),
    options=("device_start", "implausible_dates"),
)
def device_use_dates(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The use's own timing, else when it was recorded; by option the date of manufacture, which is flagged."""
    timing = ("timing_datetime", "timing_period_start", "timing_bounds_start", "timing_event_unusable", "timing_event")
    own = (*timing, "recorded_on")
    by_manufacture = derivation.options.device_start == "manufacture_date"
    frame = starting(frame, derivation, *own, *(["manufacture_date"] if by_manufacture else []))
    made = given_by_none("start", own) & pl.col("start_date").is_not_null()
    frame = frame.with_columns(made.alias(issue(IssueCode.START_IS_MANUFACTURE_DATE)), made.alias(MADE_UP))
    return ending(frame, derivation, "timing_period_end", "timing_bounds_end")


@rule(
    reads=("manufacture_date",),
    writes=(dated("start"), issue(IssueCode.START_IS_MANUFACTURE_DATE), MADE_UP),
    dates=("manufacture_date",),
)
def device_by_manufacture(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """A device by itself, under its option: from the date of manufacture, which is flagged."""
    frame = starting(frame, derivation, "manufacture_date")
    return frame.with_columns(
        pl.lit(True).alias(issue(IssueCode.START_IS_MANUFACTURE_DATE)), pl.lit(True).alias(MADE_UP)
    )
