"""Who gave care, where, and who paid: providers, care sites and coverages."""

from __future__ import annotations

import orjson
import polars as pl

from pipeline.transform.column_names import IMPLAUSIBLE, unmapped
from pipeline.transform.rules.base import GENDERS, Derivation, used
from pipeline.transform.rules.dates import ending, starting, with_birth_date
from pipeline.transform.rules.declaration import dated, looked_up, rule, used_fact

#: Domain of the concepts that say what kind of place a care site is (CDM: "choose the concept in the visit domain").
_PLACE_DOMAIN = "Visit"


@rule(
    reads=("birth_date", "gender", "specialty", "surrogate_id"),
    writes=(
        dated("birth_date", keeps_text=True),
        "year_of_birth",
        looked_up("gender", "gender", by_map=True),
        "gender_source_value",
        "role_specialty",
        "specialty",
        looked_up("specialty", "specialty", by_vocabulary=True),
        "specialty_source_value",
        "role_care_site",
        "care_site_id",
    ),
    dates=("birth_date",),
    facts=("provider_care_site", "provider_specialty"),
    value_maps=("gender",),
    priorities=("specialty",),
)
def provider(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """provider: NPI, sex, year of birth; specialty and care site of the role, whose facts are about this resource: when
    they change, publication has it mapped again."""
    frame = with_birth_date(frame, derivation)
    known = ~pl.col(IMPLAUSIBLE) if IMPLAUSIBLE in frame.columns else pl.lit(True)
    frame = derivation.look_ups.of_codes(frame, "gender", "gender", value_map="gender", system=GENDERS)
    frame = derivation.with_fact(frame, "surrogate_id", "provider_specialty", "role_specialty")
    frame = derivation.with_fact(frame, "surrogate_id", "provider_care_site", "role_care_site")
    roles = {text: derivation.sets.add_concept(orjson.loads(text)) for text in frame["role_specialty"].drop_nulls()}
    by_role = pl.col("role_specialty").replace_strict(roles, default=None, return_dtype=pl.Int32)
    frame = frame.with_columns(pl.coalesce(by_role, "specialty").alias("specialty"))
    frame = derivation.look_ups.of(frame, "specialty", "specialty", purpose="specialty")
    return frame.with_columns(
        pl.when(known).then(pl.col("birth_date_date").dt.year()).alias("year_of_birth"),
        pl.col("gender").alias("gender_source_value"),
        pl.col("specialty_concept_id").fill_null(0),
        pl.col("specialty_source_code").alias("specialty_source_value"),
        pl.col("role_care_site").cast(pl.Int64).alias("care_site_id"),
    )


@rule(
    reads=("place_of_service",),
    writes=(
        "place_of_service_concept_id",
        "place_of_service_source_value",
        "place_of_service_source_concept_id",
        "place_of_service_source_system",
        "place_of_service_meaning",
        "place_of_service_excludes",
        unmapped("place_of_service"),
    ),
    value_maps=("place_of_service",),
    priorities=("place",),
    options=("place_of_service",),
)
def care_site(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """care_site: its kind by the value map, else by a standard concept of domain Visit; present but neither → 0. Without a
    type, or by option, place_by_visits.sql says it."""
    frame = derivation.look_ups.of(
        frame,
        "place_of_service",
        "place_of_service",
        value_map="place_of_service",
        purpose="place",
        domain=_PLACE_DOMAIN,
    ).rename({"place_of_service_source_code": "place_of_service_source_value"})
    if derivation.options.place_of_service == "source":
        return frame
    return frame.with_columns(pl.lit(None, dtype=pl.Int64).alias("place_of_service_concept_id"))


@rule(
    reads=("place_of_service",),
    writes=(
        *(
            "value",
            "place_of_service_concept_id",
            "place_of_service_source_value",
            "place_of_service_source_concept_id",
        ),
        *("place_of_service_source_system", "place_of_service_meaning", "place_of_service_excludes"),
    ),
    value_maps=("place_of_service",),
    priorities=("place",),
    options=("place_of_service",),
)
def place_by_visits(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the source does not say what kind of place it is, or by option its visits do."""
    frame = care_site(frame, derivation).drop(unmapped("place_of_service"))  # the row counts it
    return frame.filter(pl.col("place_of_service_concept_id").is_null()).with_columns(pl.lit("1").alias("value"))


_ROLES = "http://terminology.hl7.org/CodeSystem/v3-RoleCode"
_EMERGENCY = ("ER", "ETU")


@rule(reads=("place_of_service",), writes=("value",))
def emergency_location(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: the code by which a location says that it is an emergency room."""
    codings = derivation.sets.codings_of(frame["place_of_service"].drop_nulls().unique(maintain_order=True))
    emergency = codings.filter((pl.col("system") == _ROLES) & pl.col("code").is_in(_EMERGENCY))
    first = emergency.unique("code_set", keep="first", maintain_order=True)
    first = first.select(pl.col("code_set").alias("place_of_service"), pl.col("code").alias("value"))
    return frame.join(first, on="place_of_service", how="inner", maintain_order="left")


#: What the value map `payer` calls the system of names of those who pay.
_PAYORS = "payor"


@rule(
    reads=("start", "end", "kind", "payor_display", "payor_text", "payor_organization"),
    writes=(
        dated("start", keeps_text=True),
        dated("end"),
        "payer_plan_period_start_date",
        "payer_plan_period_end_date",
        looked_up("kind", "kind", by_vocabulary=True),
        "payer_concept_id",
        "payer_source_concept_id",
        "payer_source_value",
        "plan_concept_id",
        "plan_source_concept_id",
        "plan_source_value",
        "kind_text",
        *("organization_name", "payor_name", "payor"),
        looked_up("payor", "payor", by_map=True),
        used_fact("organization_name"),
    ),
    dates=("start", "end"),
    facts=("organization_name",),
    value_maps=("payer",),
    priorities=("payer",),
    options=("implausible_dates",),
)
def coverage(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """payer_plan_period: without an end it lasts until the as-of date of the export; an impossible end is the start.

    A type of domain Payer is the payer, any other the plan; then the payer is the organization that pays, by the value map
    `payer`.
    """
    frame = ending(starting(frame, derivation, "start"), derivation, "end")
    frame = _with_payor(derivation.look_ups.of(frame, "kind", "kind", purpose="payer"), derivation)
    domains = derivation.concepts(frame["kind_concept_id"].drop_nulls().unique().to_list())
    payers = domains.filter(pl.col("domain_id") == "Payer")["concept_id"].implode()
    is_payer = pl.col("kind_concept_id").is_in(payers).fill_null(False)
    as_of = pl.max_horizontal(pl.lit(derivation.as_of), pl.col("start_date"))
    texts = {number: derivation.sets.text_of(number) for number in frame["kind"].drop_nulls().unique()}
    frame = frame.with_columns(
        pl.col("kind").replace_strict(texts, default=None, return_dtype=pl.String).alias("kind_text")
    )
    kind_value = pl.coalesce("kind_source_code", "kind_text")
    return frame.with_columns(
        pl.col("start_date").alias("payer_plan_period_start_date"),
        pl.when(pl.col("end").is_null())
        .then(as_of)
        .otherwise(pl.coalesce("end_date", "start_date"))
        .alias("payer_plan_period_end_date"),
        pl.when(is_payer).then("kind_concept_id").otherwise("payor_concept_id").alias("payer_concept_id"),
        pl.when(is_payer).then("kind_source_concept_id").alias("payer_source_concept_id"),
        pl.when(is_payer).then(kind_value).otherwise("payor_name").alias("payer_source_value"),
        pl.when(~is_payer).then("kind_concept_id").alias("plan_concept_id"),
        pl.when(~is_payer).then("kind_source_concept_id").alias("plan_source_concept_id"),
        pl.when(~is_payer).then(kind_value).alias("plan_source_value"),
    )


def _with_payor(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds payor_name, and its concept by the value map: of an organization, by the reference's display or its own name.

    A payor of which only a text is known may be a person: it counts where the site lets texts stand (f2o-022).
    """
    frame = derivation.with_fact(frame, "payor_organization", "organization_name", "organization_name")
    asked = pl.col("payor_organization").is_not_null() & pl.col("payor_display").is_null()
    frame = used(frame, "organization_name", "payor_organization", asked, pl.col("organization_name").is_null())
    text = pl.when(pl.lit("Coverage" in derivation.text_types)).then("payor_text")
    frame = frame.with_columns(pl.coalesce("payor_display", "organization_name", text).alias("payor_name"))
    numbers = derivation.look_ups.code_sets(
        frame["payor_name"], _PAYORS, named=lambda name: " ".join(name.casefold().split())
    )
    return derivation.look_ups.of(frame.with_columns(numbers.alias("payor")), "payor", "payor", value_map="payer")
