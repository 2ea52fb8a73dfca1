"""The places of a visit: how fine each is, and which of them is a detail of its own.

Epic lists the unit, the hospital, the room and the bed of one stay beside one another, with one period. What belongs
here is the choice among them; what a detail holds is in `visits`.
"""

from __future__ import annotations

from functools import reduce
from operator import or_

import polars as pl

from pipeline.transform.column_names import NOT_MADE
from pipeline.transform.rules.base import INPATIENT_VISITS, Derivation, used
from pipeline.transform.rules.declaration import rule, used_fact

__all__ = ["CHOSEN", "PLACE_FACTS", "with_chosen_places"]

#: How fine a place is: a site or building, a unit, a room, a bed.
_SITE, _UNIT, _ROOM, _BED = range(4)
_LEVELS = {
    **dict.fromkeys(("si", "bu", "jdn", "rd", "ve", "ho", "vi"), _SITE),
    **dict.fromkeys(("wi", "wa", "lvl", "area"), _UNIT),
    **dict.fromkeys(("ro", "co", "ca"), _ROOM),
    "bd": _BED,
}
#: The system of these codes, as `system_aliases.csv` names it.
_PHYSICAL_TYPES = "http://terminology.hl7.org/CodeSystem/location-physical-type"
_OPTION_LEVELS = {"unit": _UNIT, "room": _ROOM, "bed": _BED}
#: So many places above one are looked at: a bed in a room, a unit, a wing, a building, a campus.
_MOST_ABOVE = 6
_FACT = "place_level"
_UNKNOWN = -1

#: The places of a chain by the column that holds them, and for what their fact is used.
_ABOVE = tuple(f"above_{number}" for number in range(1, _MOST_ABOVE + 1))
_NAMES = {"place": _FACT, **{column: f"{_FACT}__{column}" for column in _ABOVE}}
PLACE_FACTS = (_FACT, "emergency_location")
#: What `with_chosen_places` adds.
CHOSEN = (
    *(name for used_name in _NAMES.values() for name in used_fact(used_name)),
    *used_fact("emergency_location"),
    NOT_MADE,
)


@rule(reads=("physical_type", "part_of"), writes=("value",))
def place_level(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Fact: `physical type/place above`, either may be empty: how fine a place is, for the stays in it."""
    codings = derivation.sets.codings_of(frame["physical_type"].drop_nulls().unique(maintain_order=True))
    typed = codings.filter(pl.col("system") == _PHYSICAL_TYPES).unique("code_set", keep="first", maintain_order=True)
    codes = dict(typed.select("code_set", "code").iter_rows())
    types = pl.col("physical_type").replace_strict(codes, default=None, return_dtype=pl.String)
    parts = types.fill_null(""), pl.col("part_of").cast(pl.String).fill_null("")
    return frame.with_columns(pl.concat_str(*parts, separator="/").alias("value"))


def with_chosen_places(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds CHOSEN: NOT_MADE is true for the places of a visit that are no detail of their own.

    Of the places of one period the finest is the detail, those finer than the option `stay_level` after the others; what
    is finer makes none at all where an entry of its unit (or room) covers its period. Nor does what only repeats the
    visit: same care site, period and concept. All keep what they depend on.

    frame: one row for each place (`index`: its line), with `stay_start_…`, `stay_end_…`, `start_…`, `end_…`,
    `visit_detail_…`, and `care_site_id` of the visit.
    """
    frame = frame.with_row_index("entry")
    several = pl.len().over("index") > 1
    chain = _with_chain(frame.select("entry", "place", several.alias("several")), derivation)
    frame = frame.join(chain.drop("place", "several"), on="entry", how="left", maintain_order="left")
    finest = derivation.options.stay_level
    entries = _with_period(frame.filter(several)).with_columns(
        (pl.col("level") > _OPTION_LEVELS[finest]).alias("too_fine")
    )
    dropped = [_beside_finer(entries), _within_unit(entries)]
    frame = _repeating(frame, derivation)
    not_made = reduce(or_, (pl.col("entry").is_in(numbers.implode()) for numbers in dropped), pl.col("repeats"))
    return frame.with_columns(not_made.alias(NOT_MADE)).drop("entry", "level", "depth", "repeats", *_ABOVE)


def _with_chain(places: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds above_1 … (Int64: the places above, from the inside out), depth, level, and which facts are used.

    level: by the physical type of the place, else so many below the nearest place above that has one, else below the
    outermost; -1 where the place is not known. Of a visit's only place nothing is asked.
    """
    places = places.with_columns(pl.when("several").then("place").alias("below"))
    level: list[pl.Expr] = []
    for number, (column, name) in enumerate(_NAMES.items()):
        if column != "place":
            places = places.with_columns(pl.col("next").alias("below")).drop("next")
            places = places.with_columns(pl.col("below").alias(column))
        places = derivation.with_fact(places, "below", _FACT, "fact")
        parts = pl.col("fact").str.split_exact("/", 1)
        places = places.with_columns(
            parts.struct.field("field_0").replace_strict(_LEVELS, default=None, return_dtype=pl.Int64).alias("typed"),
            parts.struct.field("field_1").replace("", None).cast(pl.Int64).alias("next"),
        )
        # A place that comes later changes its fact, and that has its visits mapped again: nothing waits for it.
        places = used(places, name, "below", pl.col("below").is_not_null(), pl.lit(False))
        places = places.rename({"typed": f"typed_{number}", "fact": f"fact_{number}"})
        level.append(pl.col(f"typed_{number}") + number)
    places = places.drop("below", "next")
    depth = pl.sum_horizontal(pl.col(column).is_not_null().cast(pl.Int64) for column in _ABOVE)
    by_depth = pl.when(pl.col("fact_0").is_not_null()).then(depth)
    return places.with_columns(
        depth.alias("depth"),
        pl.coalesce(*level, by_depth).clip(_SITE, _BED).fill_null(_UNKNOWN).alias("level"),
    ).drop(f"{part}_{number}" for part in ("typed", "fact") for number in range(len(_NAMES)))


def _with_period(entries: pl.DataFrame) -> pl.DataFrame:
    """The entries with `from`, `until` (dates) and `from_moment`, `until_moment` (NULL where only a day is known)."""
    own_end = pl.col("stay_end_date").is_not_null()
    by_visit = pl.col("visit_detail_end_date") == pl.col("end_date")
    return entries.select(
        "index",
        "entry",
        "place",
        "level",
        "depth",
        *_ABOVE,
        "visit_detail_start_datetime",
        "visit_detail_end_datetime",
        pl.col("visit_detail_start_date").alias("from"),
        pl.col("stay_start_moment").alias("from_moment"),
        pl.col("visit_detail_end_date").alias("until"),
        pl.when(own_end).then("stay_end_moment").when(by_visit).then("end_moment").alias("until_moment"),
    )


def _beside_finer(entries: pl.DataFrame) -> pl.Series:
    """entry of those beside which another one of the same period is the detail."""
    period = ["index", "visit_detail_start_datetime", "visit_detail_end_datetime"]
    order = pl.when("too_fine").then(10 + pl.col("level")).otherwise(-pl.col("level"))
    ordered = entries.sort("entry").sort(order, -pl.col("depth"), maintain_order=True)
    chosen = ordered.unique(period, keep="first", maintain_order=True)["entry"]
    return entries.filter(~pl.col("entry").is_in(chosen.implode()))["entry"]


def _within_unit(entries: pl.DataFrame) -> pl.Series:
    """entry of those that are too fine, and within an entry of their own unit or room that covers their period."""
    fine = entries.filter("too_fine")
    if fine.is_empty():
        return fine["entry"]
    outer = entries.filter(pl.col("level") >= _UNIT).select(
        "index", *(pl.col(name).alias(f"outer_{name}") for name in _OF_OUTER)
    )
    pairs = fine.join(outer, on="index", how="inner").filter(pl.col("outer_level") < pl.col("level"))
    begins = pl.coalesce(pl.col("outer_from_moment") <= pl.col("from_moment"), pl.col("outer_from") <= pl.col("from"))
    ends = pl.coalesce(pl.col("outer_until_moment") >= pl.col("until_moment"), pl.col("outer_until") >= pl.col("until"))
    inside = reduce(or_, (pl.col(column).eq_missing(pl.col("outer_place")) for column in _ABOVE))
    # A room that does not say of what it is a part is taken for one of the unit in which the patient was then.
    return pairs.filter(begins & ends & (inside | (pl.col("depth") == 0)))["entry"].unique()


_OF_OUTER = ("place", "level", "from", "from_moment", "until", "until_moment")


def _repeating(frame: pl.DataFrame, derivation: Derivation) -> pl.DataFrame:
    """Adds `repeats`: the care site, the period and the concept are the visit's.

    An emergency room within an inpatient's visit has another concept than the visit, as long as it says that it is one.
    """
    same_site = pl.col("place").eq_missing(pl.col("care_site_id"))
    same_start = pl.col("visit_detail_start_datetime") == pl.col("start_datetime")
    open_stay = pl.col("visit_concept_id").is_in(INPATIENT_VISITS) & pl.col("end").is_null()
    as_of = pl.max_horizontal(pl.lit(derivation.as_of), pl.col("start_date")).cast(pl.Datetime("us"))
    visit_end = pl.when(open_stay).then(as_of).otherwise(pl.coalesce("end_datetime", "start_datetime"))
    same_end = pl.col("visit_detail_end_datetime") == visit_end
    frame = frame.with_columns((same_site & same_start & same_end).fill_null(False).alias("repeats"))
    asked = pl.when(pl.col("repeats") & (pl.col("visit_concept_id") == _INPATIENT)).then("place")
    frame = derivation.with_fact(frame.with_columns(asked.alias("asked")), "asked", "emergency_location", "emergency")
    frame = used(frame, "emergency_location", "asked", pl.col("asked").is_not_null(), pl.lit(False))
    return frame.with_columns(pl.col("repeats") & pl.col("emergency").is_null()).drop("asked", "emergency")


_INPATIENT = 9201
