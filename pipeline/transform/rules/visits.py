"""Encounters: visits, the stays within them, and what a discharge says."""

from __future__ import annotations

import polars as pl

from pipeline.fhir.datetimes import is_open_end
from pipeline.transform.column_names import unmapped
from pipeline.transform.rules.base import INPATIENT_VISITS, Derivation
from pipeline.transform.rules.dates import ending, first_usable, starting, without_issues
from pipeline.transform.rules.declaration import dated, looked_up, rule
from pipeline.transform.rules.places import CHOSEN, PLACE_FACTS, with_chosen_places

ACT_CODES = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
#: The codes of FHIR's own lists are asked after those of NUBC and of the site: they are what others were turned into.
_ADMIT_SOURCES = "http://terminology.hl7.org/CodeSystem/admit-source"
_DISPOSITIONS = "http://terminology.hl7.org/CodeSystem/discharge-disposition"


_VISIT_CONCEPT = (
    *("visit_concept_id", "exclude_reason", "by_type", "type_excludes", "type_known"),
    *("class_concept_id", "class_code", "class_system", "class_meaning", "class_excludes", unmapped("class")),
)
_DISPOSITION = looked_up("discharged_to", "discharge_disposition", by_map=True)
_STAY = (
    *(name for name in _VISIT_CONCEPT if name != unmapped("class")),
    *dated("start", keeps_text=True, keeps_precision=False),
    *dated("end", keeps_precision=False),
    *dated("stay_start"),
    *dated("stay_end"),
    "is_open_stay",
)


@rule(
    reads=("start", "end", "class", "former_classes", "types", "admit_source", "discharge_disposition"),
    writes=(
        _VISIT_CONCEPT,
        dated("start", keeps_text=True),
        dated("end"),
        looked_up("admitted_from", "admit_source", by_map=True),
        "admitted_from_source_value",
        _DISPOSITION,
        "discharged_to_source_value",
        "visit_start_date",
        "visit_start_datetime",
        "visit_end_date",
        "visit_end_datetime",
        "visit_type_concept_id",
        "visit_source_value",
    ),
    dates=("start", "end"),
    value_maps=("encounter_class", "encounter_type", "admit_source", "discharge_disposition"),
    constants=("visit_type_ehr_encounter", "visit_emergency_and_inpatient"),
    options=("observation_encounter", "implausible_dates"),
)
def visit(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """visit_occurrence: kind by class and type, missing end by kind (outpatient: start; inpatient: as-of)."""
    frame = ending(starting(visit_concept(frame, derivation), derivation, "start"), derivation, "end")
    frame = derivation.look_ups.of(
        frame, "admit_source", "admitted_from", value_map="admit_source", last=_ADMIT_SOURCES
    )
    frame = _disposition(frame, derivation)
    open_stay = pl.col("visit_concept_id").is_in(INPATIENT_VISITS) & pl.col("end").is_null()
    as_of = pl.max_horizontal(pl.lit(derivation.as_of), pl.col("start_date"))
    return frame.with_columns(
        pl.col("start_date").alias("visit_start_date"),
        pl.col("start_datetime").alias("visit_start_datetime"),
        pl.when(open_stay).then(as_of).otherwise(pl.coalesce("end_date", "start_date")).alias("visit_end_date"),
        pl.when(open_stay)
        .then(as_of.cast(pl.Datetime("us")))
        .otherwise(pl.coalesce("end_datetime", "start_datetime"))
        .alias("visit_end_datetime"),
        pl.lit(derivation.constant("visit_type_ehr_encounter"), dtype=pl.Int64).alias("visit_type_concept_id"),
        pl.col("class_code").alias("visit_source_value"),
        pl.col("admitted_from_source_code").alias("admitted_from_source_value"),
        pl.col("discharged_to_source_code").alias("discharged_to_source_value"),
    )


def visit_concept(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds visit_concept_id and exclude_reason: the crosswalk of types (within a class) before that of classes.

    A class that is unknown, or missing, counts where its type does not say the kind of visit either.
    """
    frame = derivation.look_ups.of(frame.with_row_index("visit_row"), "class", "class", value_map="encounter_class")
    frame = frame.rename({"class_source_system": "class_system", "class_source_code": "class_code"})
    frame = frame.join(_by_type(frame, derivation), on="visit_row", how="left", maintain_order="left")
    by_type = pl.col("type_known").fill_null(False)
    by_class = pl.col("class_concept_id")
    if derivation.options.observation_encounter == "emergency_and_inpatient":
        under_observation = (pl.col("class_system") == ACT_CODES) & (pl.col("class_code") == "OBSENC")
        both = pl.lit(derivation.constant("visit_emergency_and_inpatient"), dtype=pl.Int64)
        by_class = pl.when(under_observation).then(both).otherwise(by_class)
    by_class = _after_emergency(frame, derivation, by_class)
    missing = pl.when(pl.col("class").is_null()).then(pl.lit(derivation.sets.nothing(), dtype=pl.Int32))
    return frame.with_columns(
        pl.when(by_type).then("by_type").otherwise(by_class).alias("visit_concept_id"),
        pl.when(by_type).then("type_excludes").otherwise("class_excludes").alias("exclude_reason"),
        pl.when(~by_type).then(pl.coalesce(unmapped("class"), missing)).alias(unmapped("class")),
    ).drop("visit_row")


_INPATIENT, _EMERGENCY = 9201, 9203


def _after_emergency(frame: pl.DataFrame, derivation: Derivation, by_class: pl.Expr) -> pl.Expr:
    """262 for an inpatient whose class was once that of an emergency (classHistory)."""
    former = frame["former_classes"].explode().drop_nulls().unique(maintain_order=True)
    if former.is_empty():
        return by_class
    found = derivation.look_ups.in_map(former, "encounter_class").filter(pl.col("concept_id") == _EMERGENCY)
    was_emergency = pl.col("former_classes").list.eval(pl.element().is_in(found["code_set"].implode())).list.any()
    both = pl.lit(derivation.constant("visit_emergency_and_inpatient"), dtype=pl.Int64)
    return pl.when((by_class == _INPATIENT) & was_emergency).then(both).otherwise(by_class)


def _by_type(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """visit_row, by_type, type_excludes, type_known of rows with a type in the crosswalk `encounter_type`.

    An entry for the class comes before one for any class, then the order of the types decides.
    """
    entries = derivation.look_ups.value_maps["encounter_type"]
    rows = frame.select("visit_row", "class_code", pl.col("types").alias("code_set")).explode("code_set")
    codings = derivation.sets.codings_of(rows["code_set"].drop_nulls().unique(maintain_order=True))
    return (
        rows.with_row_index("type_order")
        .join(codings, on="code_set")
        .join(entries, on=["system", "code"])
        .filter(pl.col("within").is_null() | (pl.col("within") == pl.col("class_code")))
        .sort(pl.col("within").is_null(), "type_order", "position", maintain_order=True)
        .unique("visit_row", keep="first", maintain_order=True)
        .select(
            "visit_row",
            pl.col("concept_id").alias("by_type"),
            pl.col("exclude_reason").alias("type_excludes"),
            pl.lit(True).alias("type_known"),
        )
    )


@rule(
    reads=("class", "former_classes", "types"),
    writes=(_VISIT_CONCEPT, "value"),
    constants=("visit_emergency_and_inpatient",),
    options=("observation_encounter",),
    value_maps=("encounter_class", "encounter_type"),
)
def inpatient_visit(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the concept of a visit in which the patient stays."""
    frame = visit_concept(frame, derivation)
    return frame.filter(pl.col("visit_concept_id").is_in(INPATIENT_VISITS)).with_columns(
        pl.col("visit_concept_id").alias("value")
    )


_DIAGNOSIS_ROLES = "http://terminology.hl7.org/CodeSystem/diagnosis-role"


@rule(
    reads=("diagnosis_use", "rank"),
    writes=(
        "value",
        "use_concept_id",
        "use_source_code",
        "use_source_system",
        "use_meaning",
        "use_excludes",
        unmapped("diagnosis_use"),
    ),
    value_maps=("diagnosis_use",),
)
def diagnosis_use(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact about the condition: the code of its use where that has a status in the value map, else by its rank."""
    own, look_ups = "use_as_role", derivation.look_ups
    frame = frame.with_columns(_as_roles(frame["diagnosis_use"], derivation).alias(own))
    frame = look_ups.of(frame, own, "use", value_map="diagnosis_use", element=own)
    by_rank = pl.when(pl.col("rank") == 1).then(pl.lit("1")).when(pl.col("rank").is_not_null()).then(pl.lit("other"))
    unknown = pl.col(unmapped(own)).is_not_null()
    return frame.with_columns(
        pl.when(pl.col("use_concept_id") != 0).then("use_source_code").otherwise(by_rank).alias("value"),
        pl.when(unknown).then("diagnosis_use").alias(unmapped("diagnosis_use")),
    ).drop(own, unmapped(own))


def _as_roles(uses: pl.Series, derivation: Derivation) -> pl.Series:
    """Code sets in which a code of FHIR's list is one, whatever its system is called; those with a status come first."""
    entries = derivation.look_ups.value_maps["diagnosis_use"]
    roles = set(entries.filter(pl.col("system") == _DIAGNOSIS_ROLES)["code"])
    with_status = set(entries.filter(pl.col("concept_id") != 0)["code"])
    numbers = {}
    for number in uses.drop_nulls().unique(maintain_order=True):
        codings = derivation.sets.codings_of([number]).select("system", "code").rows()
        named = [{"system": _DIAGNOSIS_ROLES if code in roles else system, "code": code} for system, code in codings]
        named.sort(key=lambda coding: coding["code"] not in with_status)
        numbers[number] = derivation.sets.add_concept({"coding": named}) if named else number
    return uses.replace_strict(numbers, default=None, return_dtype=pl.Int32)


@rule(
    reads=(
        *("start", "end", "place_start", "place_end", "place", "class", "former_classes", "types"),
        *("surrogate_id", "index", "care_site_id"),
    ),
    writes=(
        _STAY,
        "care_site_id",
        "visit_occurrence_id",
        "visit_detail_concept_id",
        "visit_detail_start_date",
        "visit_detail_start_datetime",
        "visit_detail_end_date",
        "visit_detail_end_datetime",
        "visit_detail_type_concept_id",
        "visit_detail_source_value",
        CHOSEN,
    ),
    dates=("place_start", "place_end"),
    facts=PLACE_FACTS,
    constants=("visit_type_ehr_encounter", "visit_emergency_and_inpatient"),
    options=("observation_encounter", "implausible_dates", "stay_level"),
    value_maps=("encounter_class", "encounter_type"),
)
def stay(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """visit_detail: one row for each place of the visit that is a detail of its own (`with_chosen_places`). What a place
    does not say, the visit does.

    The end of an inpatient's place that has none is the visit's, or the as-of date while that is open.
    """
    frame = _stay_period(frame, derivation)
    inpatient, as_of = pl.col("is_open_stay"), pl.max_horizontal(pl.lit(derivation.as_of), pl.col("stay_start_date"))
    by_clock = pl.col("end_moment") >= pl.col("stay_start_moment")
    visit_end = pl.coalesce(by_clock, pl.col("end_date") >= pl.col("stay_start_date"))
    first_known = (pl.when(visit_end).then(f"end_{part}") for part in ("date", "datetime"))
    day, moment = first_known
    frame = frame.with_columns(
        pl.col("visit_concept_id").alias("visit_detail_concept_id"),
        pl.col("stay_start_date").alias("visit_detail_start_date"),
        pl.col("stay_start_datetime").alias("visit_detail_start_datetime"),
        pl.coalesce("stay_end_date", pl.when(inpatient).then(as_of), day, "stay_start_date").alias(
            "visit_detail_end_date"
        ),
        pl.coalesce(
            "stay_end_datetime", pl.when(inpatient).then(as_of.cast(pl.Datetime("us"))), moment, "stay_start_datetime"
        ).alias("visit_detail_end_datetime"),
        pl.lit(derivation.constant("visit_type_ehr_encounter"), dtype=pl.Int64).alias("visit_detail_type_concept_id"),
        pl.col("class_code").alias("visit_detail_source_value"),
        pl.col("surrogate_id").alias("visit_occurrence_id"),
    )
    frame = with_chosen_places(frame, derivation).with_columns(pl.col("place").alias("care_site_id"))
    return frame.drop(unmapped("class"))  # the visit counts it


@rule(
    reads=("start", "end", "place_start", "place_end", "place", "class", "former_classes", "types", "surrogate_id"),
    writes=(_STAY, unmapped("class"), "about", "value"),
    dates=("place_start",),
    constants=("visit_emergency_and_inpatient",),
    options=("observation_encounter", "implausible_dates"),
    value_maps=("encounter_class", "encounter_type"),
)
def open_stay_detail(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the start of an inpatient's place that has not ended, about the place: a visit may have several."""
    open_ends = (is_open_end(pl.col(name)).fill_null(True) for name in ("end", "place_end"))
    frame = _stay_period(frame.filter(*open_ends), derivation)
    return frame.filter("is_open_stay").with_columns(
        pl.coalesce("place", "surrogate_id").alias("about"),
        pl.col("stay_start_datetime").dt.strftime(_STAY_START).alias("value"),
    )


#: How the fact `open_stay_detail` writes the start of a detail, in the instance's zone.
_STAY_START = "%Y-%m-%d %H:%M:%S%.6f"


def _stay_period(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds stay_start_…, stay_end_… (NULL where the place has none) and is_open_stay."""
    frame = ending(starting(visit_concept(frame, derivation), derivation, "start"), derivation, "end")
    frame = without_issues(frame, ("start", "end"))  # the visit's own row reports them
    frame = first_usable(frame, derivation, "stay_start", "place_start", "start")
    frame = without_issues(ending(frame, derivation, "place_end", name="stay_end", start="stay_start"), ("start",))
    inpatient = pl.col("visit_concept_id").is_in(INPATIENT_VISITS)
    # An end that is not a valid date, or lies before the start, is not a missing one.
    open_stay = inpatient & pl.col("end").is_null() & pl.col("stay_end").is_null()
    return frame.with_columns(open_stay.fill_null(False).alias("is_open_stay"))


def _disposition(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    return derivation.look_ups.of(
        frame, "discharge_disposition", "discharged_to", value_map="discharge_disposition", last=_DISPOSITIONS
    )


@rule(
    reads=("start", "end", "discharge_disposition", "surrogate_id"),
    writes=(
        _DISPOSITION,
        dated("start", keeps_text=True, keeps_precision=False),
        dated("end", keeps_precision=False),
        "source_value",
        "visit_occurrence_id",
    ),
    value_maps=("discharge_disposition",),
    options=("implausible_dates",),
)
def discharge_against_advice(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """An event at the end of the stay (or its start), linked to the visit itself."""
    frame = _disposition(frame, derivation)
    frame = frame.filter(pl.col("discharged_to_meaning") == "against_advice")
    frame = without_issues(ending(starting(frame, derivation, "start"), derivation, "end"), ("start", "end"))
    ended = pl.col("end_date").is_not_null()
    return frame.with_columns(
        pl.when(ended).then("end_date").otherwise("start_date").alias("start_date"),
        pl.when(ended).then("end_datetime").otherwise("start_datetime").alias("start_datetime"),
        pl.col("surrogate_id").alias("visit_occurrence_id"),
        pl.col("discharged_to_source_code").alias("source_value"),
    )


@rule(
    reads=("start", "end", "discharge_disposition", "person_id"),
    writes=(_DISPOSITION, dated("start", keeps_text=True), dated("end", keeps_text=True), "about", "value"),
    dates=("start", "end"),
    value_maps=("discharge_disposition",),
    constants=("visit_type_ehr_encounter",),
    options=("implausible_dates",),
)
def discharge_death(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact about the patient: `date|datetime|type concept` of a death at the end of the stay."""
    frame = ending(starting(_disposition(frame, derivation), derivation, "start"), derivation, "end")
    died = pl.col("discharged_to_meaning") == "died"
    frame = frame.filter(died & pl.col("end_date").is_not_null())
    kind = str(derivation.constant("visit_type_ehr_encounter"))
    day, moment = pl.col("end_date").cast(pl.String), pl.col("end_datetime").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f")
    return frame.with_columns(
        pl.col("person_id").alias("about"), pl.concat_str(day, moment, pl.lit(kind), separator="|").alias("value")
    )
