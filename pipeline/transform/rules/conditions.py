"""Conditions: start and end by precedence, status, history."""

from __future__ import annotations

import re
from datetime import date, timedelta

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import MADE_UP, issue
from pipeline.transform.rules.base import AS_VALUE, Derivation, as_value, as_value_writes, used
from pipeline.transform.rules.dates import ending, starting, visit_dates, with_visit_period
from pipeline.transform.rules.declaration import dated, looked_up, rule, used_fact

_MAX_DAYS_OUTSIDE = 7


#: verificationStatus of what was thought of, but not found; `refuted` is known not to be there.
_TENTATIVE = ("provisional", "differential")
_REFUTED = ("refuted",)

#: Issue of a condition or allergy that is over, or not active now, where no column of the row says so.
NOT_ACTIVE = IssueCode.CLINICAL_STATUS_NOT_ACTIVE

#: What the value maps call the systems of the two statuses.
_VERIFICATION, _CLINICAL = "verification", "clinical"


_QUALIFIER = (*looked_up("qualifier", "verification_status", by_map=True), "qualifier_source_value")


@rule(
    reads=("verification_status",),
    options=("condition_not_confirmed",),
)
def asserted(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Rows that are conditions of the patient; option condition_not_confirmed says whether tentative ones are."""
    return frame.filter(~_only_observed(derivation))


@rule(
    reads=("verification_status",),
    writes=_QUALIFIER,
    value_maps=("condition_qualifier",),
    options=("condition_not_confirmed",),
)
def not_confirmed(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Rows of conditions that the patient does not have, or may not have: observations with a qualifier."""
    return qualified(frame.filter(_only_observed(derivation)), derivation)


def _only_observed(derivation: Derivation) -> pl.Expr:
    keeps_tentative = derivation.options.condition_not_confirmed == "condition"
    statuses = _REFUTED if keeps_tentative else (*_REFUTED, *_TENTATIVE)
    return pl.col("verification_status").is_in(statuses).fill_null(False)


@rule(
    reads=("verification_status",),
    writes=_QUALIFIER,
    value_maps=("condition_qualifier",),
)
def qualified(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds the qualifier of an observation on a condition that is not confirmed; of others NULL."""
    frame = derivation.look_ups.of_codes(
        frame, "verification_status", "qualifier", value_map="condition_qualifier", system=_VERIFICATION
    )
    open_or_no = pl.col("verification_status").is_in((*_REFUTED, *_TENTATIVE))  # also where no concept says it
    return frame.with_columns(pl.when(open_or_no).then("verification_status").alias("qualifier_source_value"))


@rule(
    reads=(
        "onset_age",
        "onset_datetime",
        "onset_period_start",
        "abatement_age",
        "abatement_datetime",
        "abatement_period_end",
        "recorded_date",
        "clinical_status",
        "verification_status",
        "is_encounter_diagnosis",
        "person_id",
        "visit_occurrence_id",
        "surrogate_id",
    ),
    writes=(
        dated("start"),
        dated("end"),
        "onset_by_age",
        "abatement_by_age",
        "birth_date",
        used_fact("birth_date__onset"),
        used_fact("birth_date__abatement"),
        issue(IssueCode.DATE_INVALID, "onset_age"),
        issue(IssueCode.DATE_INVALID, "abatement_age"),
        issue(IssueCode.QUANTITY_INEXACT, "onset_age"),
        issue(IssueCode.QUANTITY_INEXACT, "abatement_age"),
        issue(NOT_ACTIVE, "clinical_status"),
        dated("visit_start", keeps_precision=False),
        dated("visit_end", keeps_precision=False),
        used_fact("encounter_period"),
        "visit_occurrence_id",
        "diagnosis_use",
        "by_diagnosis",
        looked_up("clinical", "clinical_status", by_map=True),
        looked_up("verification", "verification_status", by_map=True),
        "condition_status_concept_id",
        "condition_status_source_value",
    ),
    dates=(
        "onset_datetime",
        "onset_period_start",
        "onset_by_age",
        "recorded_date",
        "visit_start",
        "abatement_datetime",
        "abatement_period_end",
        "abatement_by_age",
    ),
    facts=("birth_date", "condition_status", "encounter_period"),
    value_maps=("condition_status", "diagnosis_use"),
    options=("condition_resolved", "implausible_dates"),
)
def condition(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Start by precedence, end from abatement, status from the encounter's diagnosis, visit only where it fits."""
    frame = (
        frame.pipe(at_age, derivation, "onset")
        .pipe(at_age, derivation, "abatement")
        .pipe(with_visit_period, derivation)
    )
    frame = starting(
        frame, derivation, "onset_datetime", "onset_period_start", "onset_by_age", "recorded_date", "visit_start"
    )
    frame = ending(frame, derivation, "abatement_datetime", "abatement_period_end", "abatement_by_age")
    # Visit and status depend on what the encounter says, also where it says nothing yet.
    has_visit, unknown = pl.col("visit_occurrence_id").is_not_null(), pl.col("visit_start").is_null()
    frame = used(frame, "encounter_period", "visit_occurrence_id", has_visit, unknown)
    frame = visit_dates(frame, derivation)
    margin = pl.duration(days=_MAX_DAYS_OUTSIDE)
    first, last = pl.col("visit_start_date"), pl.coalesce("visit_end_date", "visit_start_date")
    outside = (pl.col("start_date") < first - margin) | (pl.col("start_date") > last + margin)
    frame = frame.with_columns(
        pl.when(~(outside & ~pl.col("is_encounter_diagnosis").fill_null(False)).fill_null(False))
        .then("visit_occurrence_id")
        .alias("visit_occurrence_id")
    )
    return _condition_status(frame, derivation)


def at_age(frame: pl.DataFrame, derivation: Derivation, element: str) -> pl.DataFrame:
    """Adds `<element>_by_age` (FHIR date string) where `<element>_age` and the patient's birth date are known.

    An age that cannot be added to the birth date is an issue; so is one with a comparator, whose number stands in.
    """
    age, target = f"{element}_age", f"{element}_by_age"
    has_age = pl.col(age).is_not_null()
    aged = frame.filter(pl.col(age).is_not_null()).select("person_id", age).unique()
    if aged.is_empty():
        return frame.with_columns(pl.lit(None, dtype=pl.String).alias(target))
    aged = derivation.with_fact(aged, "person_id", "birth_date", "birth_date")
    dates = [_add_age(birth, text) for birth, text in aged.select("birth_date", age).iter_rows()]
    aged = aged.with_columns(pl.Series(target, dates, dtype=pl.String))
    frame = frame.drop("birth_date", strict=False).join(aged, on=["person_id", age], how="left", maintain_order="left")
    unusable = frame.select((has_age & (pl.col("birth_date") != "") & pl.col(target).is_null()).fill_null(False))
    if unusable.to_series().any():
        frame = frame.with_columns(unusable.to_series().alias(issue(IssueCode.DATE_INVALID, age)))
    inexact = frame[age].str.contains(f"^{_COMPARATOR}").fill_null(value=False)
    if inexact.any():
        frame = frame.with_columns(inexact.alias(issue(IssueCode.QUANTITY_INEXACT, age)))
    return used(frame, f"birth_date__{element}", "person_id", has_age, pl.col("birth_date").is_null())


_COMPARATOR = "[<>]=?"
_AGE = re.compile(rf"(?:{_COMPARATOR})?(\d+(?:\.\d+)?) (a|mo|wk|d)")
_AGE_DAYS = {"a": 365.25, "mo": 30.4375, "wk": 7.0, "d": 1.0}


def _add_age(birth: str | None, age: str) -> str | None:
    """A birth date ('1960', '1960-05', '1960-05-04') and an age ('45 a') → ISO date, else None."""
    match = _AGE.fullmatch(age)
    if not birth or not match:
        return None
    try:
        born = date.fromisoformat((birth + "-01-01")[:10] if len(birth) == 4 else (birth + "-01")[:10])
        if match[2] == "a" and "." not in match[1]:
            year = born.year + int(match[1])
            return born.replace(year=year, day=min(born.day, 28) if born.month == 2 else born.day).isoformat()
        return (born + timedelta(days=float(match[1]) * _AGE_DAYS[match[2]])).isoformat()
    except (ValueError, OverflowError):
        return None


def _condition_status(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """From the encounter's diagnosis, else tentative, else resolved, else confirmed; no verificationStatus → NULL."""
    frame = derivation.with_fact(frame, "surrogate_id", "condition_status", "diagnosis_use")
    uses = (
        derivation.look_ups.value_maps["diagnosis_use"].select("code", "concept_id").unique("code", maintain_order=True)
    )
    frame = frame.join(
        uses.rename({"code": "diagnosis_use", "concept_id": "by_diagnosis"}),
        on="diagnosis_use",
        how="left",
        maintain_order="left",
    )
    statuses = "condition_status"
    frame = derivation.look_ups.of_codes(frame, "clinical_status", "clinical", value_map=statuses, system=_CLINICAL)
    frame = derivation.look_ups.of_codes(
        frame, "verification_status", "verification", value_map=statuses, system=_VERIFICATION
    )
    if derivation.options.condition_resolved == "ignore":
        frame = frame.with_columns(pl.lit(None, dtype=pl.Int64).alias("clinical_concept_id"))
    tentative = pl.col("verification_status").is_in(_TENTATIVE).fill_null(False)
    by_tentative = pl.when(tentative).then("verification_concept_id")
    over = pl.col("clinical_status").is_in(("inactive", "remission", "resolved"))
    is_status = pl.col("by_diagnosis").is_null() & ~tentative & pl.col("clinical_concept_id").is_not_null()
    return frame.with_columns(
        (over & ~is_status).fill_null(False).alias(issue(NOT_ACTIVE, "clinical_status")),
        pl.coalesce("by_diagnosis", by_tentative, "clinical_concept_id", "verification_concept_id").alias(
            "condition_status_concept_id"
        ),
        pl.when(pl.col("by_diagnosis").is_not_null())
        .then("diagnosis_use")
        .when(~tentative & pl.col("clinical_concept_id").is_not_null())
        .then("clinical_status")
        .otherwise("verification_status")
        .alias("condition_status_source_value"),
    )


@rule(
    reads=("code",),
    writes=(AS_VALUE,),
    priorities=("condition",),
)
def history(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The condition of a medical history becomes the value of "History of event"."""
    return as_value(frame, derivation, "condition")


@rule(
    reads=("severity",),
    writes=(as_value_writes("severity"), MADE_UP),
    priorities=("value",),
)
def condition_severity(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """How severe a condition is: the value of an observation that belongs to its row. By itself it shows no contact."""
    return as_value(frame, derivation, "value", "severity").with_columns(pl.lit(True).alias(MADE_UP))


@rule(
    reads=("stage", "stage_type"),
    writes=(
        as_value_writes("stage"),
        looked_up("qualifier", "stage_type", by_vocabulary=True),
        "qualifier_source_value",
        MADE_UP,
    ),
    priorities=("value",),
)
def condition_stage(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """A stage of a condition, in the same way, where it has a summary; by what it was staged (clinical, pathological) is the
    qualifier."""
    frame = frame.filter(pl.col("stage").is_not_null())
    frame = derivation.look_ups.of(frame, "stage_type", "qualifier", purpose="value")
    frame = frame.with_columns(pl.col("qualifier_source_code").alias("qualifier_source_value"))
    return as_value(frame, derivation, "value", "stage").with_columns(pl.lit(True).alias(MADE_UP))


@rule(
    reads=("code", "relationship", "recorded_date"),
    writes=(
        AS_VALUE,
        looked_up("qualifier", "relationship", by_map=True, by_vocabulary=True),
        "qualifier_source_value",
        dated("start"),
    ),
    dates=("recorded_date",),
    value_maps=("family_relationship",),
    priorities=("condition", "value"),
)
def family_history(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """The condition of a relative becomes the value of "Family history of clinical finding"; the relative its qualifier."""
    frame = derivation.look_ups.of(frame, "relationship", "qualifier", value_map="family_relationship", purpose="value")
    frame = frame.with_columns(pl.col("qualifier_source_code").alias("qualifier_source_value"))
    return history(starting(frame, derivation, "recorded_date"), derivation)
