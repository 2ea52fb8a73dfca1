"""Patients and deaths."""

from __future__ import annotations

import polars as pl

from pipeline.core.line_codes import IssueCode
from pipeline.transform.column_names import IMPLAUSIBLE, MADE_UP, issue, unmapped
from pipeline.transform.rules.base import AS_VALUE, GENDERS, Derivation, as_value
from pipeline.transform.rules.dates import FIRST_YEAR, first_usable, with_birth_date, without_issues
from pipeline.transform.rules.declaration import dated, looked_up, rule


def _of(name: str) -> tuple[str, ...]:
    """Columns of the races, or of the ethnicities."""
    return name, f"{name}_detailed", f"{name}_other"


_RACE_COLUMNS = (*_of("race"), *_of("ethnicity"))


@rule(
    reads=("birth_date", "birth_sex", "sex", "gender", "deceased_boolean", *_RACE_COLUMNS),
    writes=(
        dated("birth_date", keeps_text=True),
        "year_of_birth",
        "month_of_birth",
        "day_of_birth",
        "birth_datetime",
        looked_up("birth_sex", "birth_sex", by_map=True),
        looked_up("sex", "sex", by_map=True),
        looked_up("by_gender", "gender", by_map=True),
        "gender_concept_id",
        "gender_source_value",
        "race_concept_id",
        "race_source_value",
        unmapped("race"),
        "ethnicity_concept_id",
        "ethnicity_source_value",
        unmapped("ethnicity"),
        issue(IssueCode.DEATH_WITHOUT_DATE),
        "rank",
        "rank_right",
        "exclude_reason",
    ),
    dates=("birth_date",),
    value_maps=("gender", "race", "ethnicity"),
    constants=("race_mixed",),
    options=("unknown_birth_day", "persons_without_gender", "impossible_birth_years"),
)
def person(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """person: birth as far as known, sex (at birth, else of US Core, else the administrative gender), race and
    ethnicity (OMB), no identifying value."""
    frame = with_birth_date(frame, derivation)
    frame = derivation.look_ups.of_codes(frame, "birth_sex", "birth_sex", value_map="gender", system="birthsex")
    frame = derivation.look_ups.of_codes(frame, "sex", "sex", value_map="gender", system="us-core-sex")
    frame = derivation.look_ups.of_codes(frame, "gender", "by_gender", value_map="gender", system=GENDERS)
    day, precision = pl.col("birth_date_date"), pl.col("birth_date_precision")
    midyear = pl.date(day.dt.year(), 6, 15)  # Themis: year only, no earlier record known
    born = pl.when(precision == 4).then(midyear).otherwise(day)
    least = {"month": 7, "day": 10} if derivation.options.unknown_birth_day == "empty" else {"month": 4, "day": 4}
    at_birth = pl.col("birth_sex_concept_id").is_not_null()
    by_sex = pl.coalesce("birth_sex_concept_id", "sex_concept_id").fill_null(0)
    frame = frame.with_columns(
        day.dt.year().alias("year_of_birth"),
        pl.when(precision >= least["month"]).then(born.dt.month()).alias("month_of_birth"),
        pl.when(precision >= least["day"]).then(born.dt.day()).alias("day_of_birth"),
        born.cast(pl.Datetime("us")).alias("birth_datetime"),
        pl.when(by_sex != 0)
        .then(by_sex)
        .otherwise(pl.col("by_gender_concept_id").fill_null(0))
        .alias("gender_concept_id"),
        pl.when(by_sex == 0).then(unmapped("gender")).alias(unmapped("gender")),
        pl.when(at_birth)
        .then("birth_sex")
        .when(by_sex != 0)
        .then("sex")
        .otherwise(pl.coalesce("gender", "birth_sex", "sex"))
        .alias("gender_source_value"),
        pl.col("deceased_boolean").fill_null(False).alias(issue(IssueCode.DEATH_WITHOUT_DATE)),
    )
    frame = _omb_category(frame, derivation, "race", derivation.constant("race_mixed"))
    return _left_out(_omb_category(frame, derivation, "ethnicity", 0), derivation)


#: Genders that are known although no concept stands for them.
_OTHER = ("other", "OTH")


def _left_out(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds exclude_reason of persons whom options leave out; without such an option nothing."""
    reasons = []
    if derivation.options.impossible_birth_years == "exclude":
        year = pl.col("year_of_birth")
        reasons.append(
            pl.when((year < FIRST_YEAR) | (year > derivation.as_of.year)).then(pl.lit("birth_year_impossible"))
        )
    if derivation.options.persons_without_gender == "exclude":
        is_other = pl.any_horizontal(pl.col(name).is_in(_OTHER) for name in ("birth_sex", "sex", "gender"))
        unknown = (pl.col("gender_concept_id") == 0) & ~is_other.fill_null(False)
        reasons.append(pl.when(unknown).then(pl.lit("gender_missing")))
    return frame.with_columns(pl.coalesce(*reasons).alias("exclude_reason")) if reasons else frame


_OMB = "urn:oid:2.16.840.1.113883.6.238"

#: CDC's codes of race and ethnicity stand in the order of their hierarchy: the first number of each group of OMB, its
#: code, and from which number on another begins. (Source: CDC Race and Ethnicity Code Set 1.0.)
_GROUPS = {
    "race": (
        (1002, "1002-5"), (2028, "2028-9"), (2054, "2054-5"), (2076, "2076-8"), (2106, "2106-3"), (2131, "2131-1"),
        (2132, None), (2500, "2076-8"), (2501, None),
    ),
    "ethnicity": ((2135, "2135-2"), (2186, "2186-5"), (2187, None)),
}  # fmt: skip
_CDC_CODE = r"^(\d{4})-\d$"


def _omb_category(frame: pl.DataFrame, derivation: Derivation, name: str, several: int) -> pl.DataFrame:
    """`<name>_concept_id`: one known category → its concept, several → `several`, none → 0.

    Without a category that is known, detailed codes stand in, then what is not known, as US Core codes it,. Unknown ones are
    counted where nothing is known.
    """
    key = "row_of_list"
    frame = frame.with_row_index(key)
    codings = _codings(frame, derivation, name, key)
    decided = _known(codings)
    known = decided.group_by(key).agg(pl.col("concept_id").first(), pl.len().alias("known"))
    # What the concept comes from: "UNK" beside a detailed code does not say it.
    said = codings.drop_nulls("code").join(
        decided.select(key, pl.col("rank").alias("decided")).unique(), on=key, how="left"
    )
    said = said.filter(pl.col("rank") >= pl.col("decided").fill_null(0))
    texts = said.group_by(key, "rank", maintain_order=True).agg(pl.col("code").str.join("|"))
    texts = texts.sort("rank", maintain_order=True).unique(key, keep="first", maintain_order=True)
    unknown = codings.filter("is_unknown").group_by(key, maintain_order=True).agg(pl.col("code_set").alias("unknown"))
    for found in (known, texts, unknown):
        frame = frame.join(found, on=key, how="left", maintain_order="left")
    concept = pl.when(pl.col("known") > 1).then(pl.lit(several, dtype=pl.Int64)).otherwise("concept_id").fill_null(0)
    return frame.with_columns(
        concept.alias(f"{name}_concept_id"),
        pl.col("code").alias(f"{name}_source_value"),
        pl.when(pl.col("known").is_null()).then("unknown").alias(unmapped(name)),
    ).drop(key, "known", "concept_id", "code", "unknown")


def _codings(frame: pl.DataFrame, derivation: Derivation, name: str, key: str) -> pl.DataFrame:
    """The races or ethnicities of each row, in order: key, rank, code_set, code, concept_id, meaning, is_unknown.

    `rank`: 0 a category, 1 a detailed code, 2 what is not known, as US Core codes it, (`converters.other_category`).

    A code of OMB counts whatever its system is called. `meaning:not_known` (UNK, asked-unknown) is not a category.
    """
    given = pl.concat(
        frame.select(key, pl.col(column).alias("code_set"), pl.lit(rank, dtype=pl.Int8).alias("rank"))
        .explode("code_set")
        .drop_nulls("code_set")
        for rank, column in enumerate((name, f"{name}_detailed", f"{name}_other"))
    )
    given = derivation.look_ups.of(given, "code_set", "own", value_map=name)
    omb = derivation.look_ups.value_maps[name].filter(pl.col("system") == _OMB).select("code", "concept_id", "meaning")
    given = given.join(omb, left_on="own_source_code", right_on="code", how="left", maintain_order="left")
    group = _group_of(pl.col("own_source_code"), name)
    given = given.with_columns(group.alias("group")).join(
        omb.select(pl.col("code").alias("group"), pl.col("concept_id").alias("by_group")),
        on="group",
        how="left",
        maintain_order="left",
    )
    rolled = pl.when(pl.col("rank") == _DETAILED).then("by_group")
    given = given.with_columns(pl.coalesce("concept_id", rolled).alias("concept_id"))
    is_own, is_omb = pl.col(unmapped("code_set")).is_null(), pl.col("concept_id").is_not_null()
    return given.select(
        key,
        "rank",
        "code_set",
        pl.col("own_source_code").alias("code"),
        pl.when(is_own).then("own_concept_id").otherwise("concept_id").alias("concept_id"),
        pl.when(is_own).then("own_meaning").otherwise("meaning").alias("meaning"),
        (~is_own & ~is_omb).alias("is_unknown"),
    ).sort(key, "rank", maintain_order=True)


#: Rank of detailed codes.
_DETAILED = 1


def _group_of(code: pl.Expr, name: str) -> pl.Expr:
    """The group of OMB to which a detailed code of CDC belongs; NULL for any other code."""
    number = code.str.extract(_CDC_CODE).cast(pl.Int32, strict=False)
    group = pl.lit(None, dtype=pl.String)
    for first, of_group in _GROUPS[name]:
        group = pl.when(number >= first).then(pl.lit(of_group, dtype=pl.String)).otherwise(group)
    return group


def _known(codings: pl.DataFrame) -> pl.DataFrame:
    """Of `_codings` the distinct known categories of each row; others where there is none of a lower rank."""
    by_row = codings.columns[0]
    known = codings.filter(~pl.col("is_unknown") & pl.col("meaning").is_null())
    known = known.filter(pl.col("rank") == pl.col("rank").min().over(by_row))
    return known.unique([by_row, "concept_id"], keep="first", maintain_order=True)


#: What the rows that a Patient has in observation have in common.
_UNDATED = ("person_id", "start_date", "start_datetime", MADE_UP)


def _undated(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Rows that a Patient makes do not say when: their date is that of the person's latest visit, which race_dates.sql sets;
    the as-of date stands in. No observation period is made of it."""
    return frame.with_columns(
        pl.col("surrogate_id").alias("person_id"),
        pl.lit(derivation.as_of).alias("start_date"),
        pl.lit(derivation.as_of).cast(pl.Datetime("us")).alias("start_datetime"),
        pl.lit(True).alias(MADE_UP),
    )


_SEVERAL = (*_UNDATED, "value_as_concept_id", "value_source_value", "concept_id", "code", "person_row")


@rule(reads=("surrogate_id", *_of("race")), writes=_SEVERAL, value_maps=("race",))
def race_observations(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One row for each race of a person who has more than one (Themis)."""
    return _one_of_several(frame, derivation, "race")


@rule(reads=("surrogate_id", *_of("ethnicity")), writes=_SEVERAL, value_maps=("ethnicity",))
def ethnicity_observations(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One row for each ethnicity of a person who has more than one, as of races (Themis)."""
    return _one_of_several(frame, derivation, "ethnicity")


def _one_of_several(frame: pl.DataFrame, derivation: Derivation, name: str) -> pl.DataFrame:
    frame = frame.with_row_index("person_row")
    known = _known(_codings(frame, derivation, name, "person_row"))
    of_several = known.filter(pl.len().over("person_row") > 1).select("person_row", "code", "concept_id")
    rows = frame.join(of_several, on="person_row", how="inner", maintain_order="left").with_columns(
        pl.col("concept_id").alias("value_as_concept_id"), pl.col("code").alias("value_source_value")
    )
    return _undated(rows, derivation)


_IDENTITY = tuple(
    dict.fromkeys(
        name
        for name in (*AS_VALUE, *looked_up("value", "gender_identity", by_map=True, by_vocabulary=True))
        if name != unmapped("code")
    )
)


@rule(
    reads=("surrogate_id", "gender_identity"),
    writes=(*_UNDATED, "code", _IDENTITY),
    value_maps=("gender_identity",),
    priorities=("value",),
)
def gender_identity(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """One row for each gender identity of a person: it may change, and so is no part of person (Themis). What says that it is
    not known, or was not disclosed, makes none."""
    rows = frame.with_columns(pl.col("gender_identity").list.unique(maintain_order=True).alias("code"))
    rows = rows.explode("code").filter(pl.col("code").is_not_null())
    rows = as_value(rows, derivation, "value", value_map="gender_identity")
    rows = rows.rename({unmapped("code"): unmapped("gender_identity")})
    return _undated(rows.filter(pl.col("value_meaning").ne_missing("not_known")), derivation)


@rule(
    reads=("surrogate_id", "gender_identity", *_RACE_COLUMNS),
    writes=("value",),
    value_maps=("race", "ethnicity", "gender_identity"),
    priorities=("value",),
)
def race_observation(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the resource has rows of `race_observations` and the like; its value says how many."""
    rules = (race_observations, ethnicity_observations, gender_identity)
    frame = frame.with_row_index("of_line")  # a Patient may be there in two versions
    made = pl.concat(rule(frame, derivation).select("of_line") for rule in rules)
    rows = made.group_by("of_line").len("value")
    return frame.join(rows, on="of_line", how="inner", maintain_order="left").drop("of_line")


@rule(
    reads=("birth_date",),
    writes=("value", dated("birth_date", keeps_text=True)),
    dates=("birth_date",),
)
def birth_year_only(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the year of a birth of which no more is known; derived/birth_dates.sql looks for records in it."""
    return (
        with_birth_date(frame, derivation)
        .filter(pl.col("birth_date_precision") == 4)
        .with_columns(pl.col("birth_date").alias("value"))
    )


@rule(
    reads=("birth_date",),
    writes=("value", dated("birth_date", keeps_text=True)),
    dates=("birth_date",),
)
def birth_date(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the birth date, as FHIR writes it, for ages; '' where it is none from which an age could be counted."""
    frame = with_birth_date(frame, derivation)
    known = pl.col("birth_date_date").is_not_null()
    if IMPLAUSIBLE in frame.columns:
        known &= ~pl.col(IMPLAUSIBLE)
    return frame.with_columns(pl.when(known).then("birth_date").otherwise(pl.lit("")).alias("value"))


_DEATH = (
    *dated("birth_date", keeps_text=True, keeps_precision=False),
    *dated("deceased_datetime", keeps_text=True),
    *("death_date", "death_datetime", "death_type_concept_id", "person_id"),
)


@rule(reads=("birth_date", "deceased_datetime", "surrogate_id"), writes=_DEATH, dates=("deceased_datetime",))
def death(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """death: month known → its last day; year only → 31 December (Themis). None before birth: it would end what follows.

    A day is not enough for that: a death has a zone, a birth date has none.
    """
    frame = without_issues(with_birth_date(frame, derivation), ["birth_date"])  # the person's row says them
    frame = first_usable(frame, derivation, "deceased_datetime", "deceased_datetime", kind="further")
    day, precision = pl.col("deceased_datetime_date"), pl.col("deceased_datetime_precision")
    last = pl.when(precision == 4).then(pl.date(day.dt.year(), 12, 31)).when(precision == 7).then(day.dt.month_end())
    frame = frame.with_columns(pl.coalesce(last, day).alias("death_date"))
    early = frame.select(pl.col("death_date") < pl.col("birth_date_date") - pl.duration(days=1))["death_date"]
    early = early.fill_null(value=False)
    if early.any():
        alive = pl.when(~early).then("death_date").alias("death_date")
        frame = frame.with_columns(alive, early.alias(issue(IssueCode.END_BEFORE_START, "deceased_datetime")))
    return frame.with_columns(
        pl.coalesce(last.cast(pl.Datetime("us")), "deceased_datetime_datetime").alias("death_datetime"),
        pl.lit(derivation.fixed((32817,)), dtype=pl.Int64).alias("death_type_concept_id"),
        pl.col("surrogate_id").alias("person_id"),
    )


@rule(
    reads=("birth_date", "deceased_datetime", "surrogate_id"),
    writes=("value", *_DEATH),
    dates=("deceased_datetime",),
)
def patient_death(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: `date|datetime|type concept` of the death that the Patient says, as `discharge_death` of an Encounter."""
    frame = death(frame, derivation).filter(pl.col("death_date").is_not_null())
    moment = pl.col("death_datetime").dt.strftime("%Y-%m-%dT%H:%M:%S%.6f")
    parts = (pl.col("death_date").cast(pl.String), moment, pl.col("death_type_concept_id").cast(pl.String))
    return frame.with_columns(pl.concat_str(*parts, separator="|").alias("value"))
