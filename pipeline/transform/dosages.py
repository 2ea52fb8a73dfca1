"""Converters of dosages: what an order or dispense says of dose, length and pharmacy, and an administration of its rate.

Like those of `pipeline.transform.converters` they run while a view runs, give None where there is nothing to say, and
raise for a shape that FHIR does not allow. What follows from it for a row is in `rules.drugs`, `rules.administrations`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from pipeline.fhir.datetimes import is_calendar_date
from pipeline.fhir.identity import parse_reference
from pipeline.transform.concepts.code_sets import CodeSets
from pipeline.transform.converters import comparator, quantity_text, value_text


def column_converters(sets: CodeSets) -> dict[str, Callable[[Any], Any]]:
    """Type of a column (`column_types`) → its converter, of all that are here."""
    daily, rates = DailyDoses(sets), Rates(sets)
    return {
        "dosage_text": dosage_text,
        "daily_dose": daily.in_quantity_unit,
        "daily_dose_in_other_unit": daily.in_other_unit,
        "other_dose_unit": daily.other_unit,
        "counts_pieces": counts_pieces,
        "pharmacy": pharmacy(sets),
        "dispensing_pharmacy": dispensing_pharmacy(sets),
        "dosage_start": dosage_start,
        "dosage_start_unusable": dosage_start_unusable,
        "dosage_end": dosage_end,
        "dosage_end_unusable": dosage_end_unusable,
        "dosage_length": dosage_length,
        "inexact_length": inexact_length,
        "rate_text": rate_text,
        "is_rate": is_rate,
        "rate_an_hour": rates.an_hour,
        "rate_unit": rates.unit,
        "rate_unit_text": rates.unit_text,
    }


def dosage_text(resource: dict[str, Any]) -> str | None:
    """sig: the texts of all dosage instructions (of a request or dispense) or dosages (of a statement), in order."""
    dosages = resource.get("dosageInstruction") or resource.get("dosage") or ()
    texts = [dosage["text"] for dosage in dosages if dosage.get("text")]
    return "; ".join(texts) or None


def dosage_end(request: dict[str, Any]) -> str | None:
    """The last end (FHIR date string) of the bounds of all dosage instructions, among those that are dates."""
    ends = _bounds_ends(request)
    return max(filter(is_calendar_date, ends), default=None) if ends else None


def dosage_end_unusable(request: dict[str, Any]) -> str | None:
    """The first end of the bounds of dosage instructions that is not a valid date, for an issue; None where all are."""
    ends = _bounds_ends(request)
    return next((end for end in ends if not is_calendar_date(end)), None) if ends else None


def dosage_start(request: dict[str, Any]) -> str | None:
    """The first start (FHIR date string) of the bounds of all dosage instructions, among those that are dates."""
    starts = _bounds(request, "start")
    return min(filter(is_calendar_date, starts), default=None) if starts else None


def dosage_start_unusable(request: dict[str, Any]) -> str | None:
    """The first start of the bounds of dosage instructions that is not a valid date, for an issue; None where all are."""
    starts = _bounds(request, "start")
    return next((start for start in starts if not is_calendar_date(start)), None) if starts else None


def _bounds_ends(request: dict[str, Any]) -> list[str]:
    return _bounds(request, "end")


def _bounds(request: dict[str, Any], edge: str) -> list[str]:
    periods = [_repeat(dosage).get("boundsPeriod") for dosage in _instructions(request)]
    dates = [date for period in periods if period and (date := period.get(edge))]
    if any(date.__class__ is not str for date in dates):
        raise ValueError(f"expected the {edge} of a period to be a string")
    return dates


#: Bounds in these units are a number of days, or of months; a longer one is not a valid length of a treatment.
_LENGTH_DAYS = {"min": 1 / 1440, "h": 1 / 24, "d": 1.0, "wk": 7.0}
_LENGTH_MONTHS = {"mo": 1, "a": 12}
_MOST_DAYS, _MOST_MONTHS = 3650, 120


def dosage_length(request: dict[str, Any]) -> str | None:
    """How long the dosage instructions are followed, by boundsDuration: '10d' or '3mo' (begun days count).

    Instructions with a `sequence` each follow one another, others run side by side. None where a length cannot be
    added to the others, and for a range of lengths: nothing is invented.
    """
    instructions = _instructions(request)
    found = [length for dosage in instructions if (length := _length(_repeat(dosage).get("boundsDuration")))]
    if not found or len({unit for _, unit in found}) > 1:
        return None
    sequences = {dosage.get("sequence") for dosage in instructions}
    one_after_another = None not in sequences and len(sequences) == len(found) == len(instructions)
    numbers = [number for number, _ in found]
    number, unit = sum(numbers) if one_after_another else max(numbers), found[0][1]
    return f"{number}{unit}" if number <= (_MOST_DAYS if unit == "d" else _MOST_MONTHS) else None


def inexact_length(request: dict[str, Any]) -> str | None:
    """The comparator of the first boundsDuration that has one: it is no length, and an issue."""
    bounds = [_repeat(dosage).get("boundsDuration") or {} for dosage in _instructions(request)]
    found = next((one["comparator"] for one in bounds if one.get("comparator")), None)
    return comparator(found) if found else None


def _length(duration: Any) -> tuple[int, str] | None:
    if not duration:
        return None
    value, unit = duration.get("value"), str(duration.get("code") or duration.get("unit"))
    if not value or value <= 0 or value > _MOST_DAYS * 1440 or duration.get("comparator") not in {None, "="}:
        return None
    if unit in _LENGTH_DAYS:
        return ceil(value * _LENGTH_DAYS[unit]), "d"
    months = value * _LENGTH_MONTHS.get(unit, 0)
    return (int(months), "mo") if months and months == int(months) else None


def _instructions(request: dict[str, Any]) -> list[dict[str, Any]]:
    return request.get("dosageInstruction") or []


def _repeat(dosage: dict[str, Any]) -> dict[str, Any]:
    return (dosage.get("timing") or {}).get("repeat") or {}


_PERIOD_DAYS = {"h": 1 / 24, "d": 1.0, "wk": 7.0}


class DailyDoses:
    """Converters MedicationRequest or MedicationDispense → its dose a day, over all dosage instructions.

    Never invented: tablets are not divided by milligrams, and what is taken once or twice a day has no daily dose. Of
    several entries of doseAndRate (Epic sends what was calculated, what is taken and what was ordered) the one counts
    whose unit is the dispensed quantity's; where none is, the first that is an amount, not one by weight. None where
    anything is missing, where the drug is taken as needed, and where instructions follow one another (`sequence`).
    """

    def __init__(self, sets: CodeSets) -> None:
        self._sets = sets
        #: the resource that was read last, whose columns are asked for one after the other, and what was found
        self._last: dict[str, Any] | None = None
        self._found: _DailyDose = (None, None, None)

    def in_quantity_unit(self, request: dict[str, Any]) -> float | None:
        return self._of(request)[0]

    def in_other_unit(self, request: dict[str, Any]) -> float | None:
        return self._of(request)[1]

    def other_unit(self, request: dict[str, Any]) -> int | None:
        """The code set of the unit of `in_other_unit`."""
        unit = self._of(request)[2]
        return self._sets.add_quantity(unit) if unit else None

    def _of(self, request: dict[str, Any]) -> _DailyDose:
        if request is not self._last:
            self._found = _daily_dose(request)
            self._last = request
        return self._found


#: Dose a day in the unit of the quantity; else in another unit, and the Quantity that names it.
_DailyDose = tuple[float | None, float | None, dict[str, Any] | None]


def _daily_dose(request: dict[str, Any]) -> _DailyDose:
    quantity = (request.get("dispenseRequest") or {}).get("quantity") or request.get("quantity") or {}
    units = _unit_names(quantity)
    if not units:
        return None, None, None
    doses = _doses(request, lambda dose: not units.isdisjoint(_unit_names(dose)))
    if doses:
        return sum(dose for dose, _ in doses), None, None
    others = _doses(request, lambda dose: any("/" not in name for name in _unit_names(dose)))
    if not others or any(_unit_names(others[0][1]).isdisjoint(_unit_names(unit)) for _, unit in others):
        return None, None, None
    return None, sum(dose for dose, _ in others), others[0][1]


def counts_pieces(quantity: dict[str, Any]) -> bool | None:
    """True for a Quantity of solid pieces that are swallowed whole, such as tablets; else None."""
    return True if not _PIECES.isdisjoint(_unit_names(quantity)) else None


#: Names of solid, indivisible pieces. What may be a package of several ("EA", "box") is none of them.
_PIECES = frozenset(
    (
        *(
            "tab",
            "tablet",
            "tabs",
            "cap",
            "capsule",
            "caps",
            "caplet",
            "pill",
            "lozenge",
            "suppository",
            "suppositories",
        ),
        *("{tbl}", "{tablet}", "{tab}", "{capsule}", "{cap}", "{pill}", "{lozenge}", "{suppository}"),
    )
)


#: Names of one unit: an order may be for tablets of which one "tab" is taken.
_SAME_UNITS = {
    **dict.fromkeys(("tab", "tablet", "tbl", "{tbl}", "{tablet}", "{tab}"), "tablet"),
    **dict.fromkeys(("cap", "capsule", "{capsule}", "{cap}"), "capsule"),
    **dict.fromkeys(("ml", "milliliter", "millilitre"), "mL"),
    **dict.fromkeys(("patch", "patches", "{patch}"), "patch"),
}


def _unit_names(quantity: dict[str, Any]) -> set[str]:
    """By what a quantity's unit is recognised: its code, its text in any case, as one or many, and the usual name."""
    code, unit = quantity.get("code"), quantity.get("unit")
    text = " ".join(unit.split()).casefold().removesuffix("(s)").removesuffix("(es)") if unit else ""
    names = {name for name in (code, text, text.removesuffix("s") if len(text) > _SHORTEST_PLURAL else "") if name}
    return names | {_SAME_UNITS[name.casefold()] for name in names if name.casefold() in _SAME_UNITS}


_SHORTEST_PLURAL = 3


def _doses(request: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> list[tuple[float, dict[str, Any]]]:
    """Dose a day and the Quantity that names its unit, of each dosage instruction the first entry that fits; none where
    one is unknown, or where they follow one another."""
    instructions = _instructions(request)
    if len({dosage.get("sequence") for dosage in instructions}) > 1:
        return []
    doses = [_daily(dosage, fits) for dosage in instructions]
    known = [dose for dose in doses if dose is not None]
    return known if len(known) == len(doses) else []


def _daily(dosage: dict[str, Any], fits: Callable[[dict[str, Any]], bool]) -> tuple[float, dict[str, Any]] | None:
    entries = (entry.get("doseQuantity") or {} for entry in dosage.get("doseAndRate") or ())
    dose = next((dose for dose in entries if dose.get("value") and fits(dose)), None)
    as_needed = dosage.get("asNeededBoolean") or dosage.get("asNeededCodeableConcept")
    times = None if as_needed or not dose else _times_a_day(_repeat(dosage))
    return (float(dose["value"] * times), dose) if dose and times else None


_WEEK = 7


def _times_a_day(repeat: dict[str, Any]) -> float | None:
    """How often a day, by frequency and period, times of the day and days of the week; None where it is not one number
    (`frequencyMax`, `periodMax`), or where these contradict each other."""
    days, period = _PERIOD_DAYS.get(str(repeat.get("periodUnit"))), repeat.get("period")
    frequency, times, weekdays = repeat.get("frequency"), _times_of_day(repeat), set(repeat.get("dayOfWeek") or ())
    varies = any(
        repeat.get(f"{name}Max") is not None and repeat[f"{name}Max"] != repeat.get(name, 1)
        for name in ("frequency", "period")
    )
    if varies or not days or not period:
        return None
    length = period * days
    if weekdays and length == _WEEK:  # what is not on each of the days is in no known rhythm
        on_all = len(weekdays) * (times or 1)
        return None if frequency is not None and (frequency < len(weekdays)) else (frequency or on_all) / _WEEK
    if times > 1 and frequency is not None and frequency != times:
        return None
    often = (frequency if frequency is not None else times or 1) / length
    if not weekdays:
        return float(often)
    return float(often * len(weekdays) / _WEEK) if length == 1 else None


def _times_of_day(repeat: dict[str, Any]) -> int:
    return len(repeat.get("timeOfDay") or repeat.get("when") or ())


def pharmacy(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter MedicationRequest → code set by which a site may list the pharmacy that is to dispense (`_names_of`)."""

    def convert(request: dict[str, Any]) -> int | None:
        performer = (request.get("dispenseRequest") or {}).get("performer")
        codings = _names_of(performer) if performer else []
        return sets.add_concept({"coding": codings}) if codings else None

    return convert


def dispensing_pharmacy(sets: CodeSets) -> Callable[[dict[str, Any]], int | None]:
    """Converter MedicationDispense → the same of the pharmacy that dispensed: its performers, its location, and the
    codings of its type, which may say that it was by mail."""

    def convert(dispense: dict[str, Any]) -> int | None:
        references = [*(performer.get("actor") for performer in dispense.get("performer") or ())]
        references.append(dispense.get("location"))
        codings = [coding for reference in references if reference for coding in _names_of(reference)]
        codings += (dispense.get("type") or {}).get("coding") or ()
        return sets.add_concept({"coding": codings}) if codings else None

    return convert


def _names_of(reference: dict[str, Any]) -> list[dict[str, Any]]:
    """What a reference names a pharmacy by, as codings: its identifier, and its id in the system `Organization` or
    `Location`."""
    identifier, text = reference.get("identifier") or {}, reference.get("reference")
    parsed = parse_reference(text) if isinstance(text, str) else None
    codings: list[dict[str, Any]] = []
    if parsed and parsed[0] in {"Organization", "Location"}:
        codings.append({"system": parsed[0], "code": parsed[1]})
    if identifier.get("value"):
        codings.append({"system": identifier.get("system"), "code": identifier["value"]})
    return codings


# --- rates of administrations ------------------------------------------------------------------------------------------


def rate_text(dosage: dict[str, Any]) -> str | None:
    """The rate of an administration: '100 mL/h', '50 mL/1 h'."""
    rate = dosage.get("rateRatio")
    return (value_text("valueRatio", rate) if rate else quantity_text(dosage.get("rateQuantity"))) or None


class Rates:
    """Converters MedicationAdministration.dosage → what is given in an hour at its rate, else at a dose that is one.

    None for a rate by weight (`mcg/kg/min`), and for an inexact one.
    """

    def __init__(self, sets: CodeSets) -> None:
        self._sets = sets
        #: the dosage that was read last, whose columns are asked for one after the other, and what was found
        self._last: dict[str, Any] | None = None
        self._found: _Rate = (None, None)

    def an_hour(self, dosage: dict[str, Any]) -> float | None:
        return self._of(dosage)[0]

    def unit(self, dosage: dict[str, Any]) -> int | None:
        """The code set of that amount's unit."""
        unit = self._of(dosage)[1]
        return self._sets.add_quantity(unit) if unit else None

    def unit_text(self, dosage: dict[str, Any]) -> str | None:
        """The same unit as it is written."""
        unit = self._of(dosage)[1] or {}
        return unit.get("unit") or unit.get("code")

    def _of(self, dosage: dict[str, Any]) -> _Rate:
        if dosage is not self._last:
            self._found = _rate(dosage)
            self._last = dosage
        return self._found


#: Amount an hour, and the Quantity that names its unit.
_Rate = tuple[float | None, dict[str, Any] | None]

_HOURS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1 / 3600),
    **dict.fromkeys(("min", "minute", "minutes"), 1 / 60),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 1.0),
    **dict.fromkeys(("d", "day", "days"), 24.0),
}


def is_rate(quantity: dict[str, Any]) -> bool | None:
    """True for a Quantity by time, as Epic writes the dose of an infusion (`5 mcg/kg/min`): it is no amount; else None."""
    return True if _of_rate(quantity)[1] else None


def _rate(dosage: dict[str, Any]) -> _Rate:
    ratio = dosage.get("rateRatio")
    if ratio:
        amount, time = ratio.get("numerator") or {}, ratio.get("denominator") or {}
        unit = {name: amount[name] for name in ("system", "code", "unit") if amount.get(name)}
        return _an_hour(amount, unit, _hours(time.get("code"), time.get("unit")), time)
    found: _Rate = (None, None)
    for quantity in (dosage.get("rateQuantity"), dosage.get("dose")):
        unit, hours = _of_rate(quantity) if quantity else ({}, None)
        if hours and found[0] is None:
            found = _an_hour(quantity or {}, unit, hours, {"value": 1})
    return found


def _an_hour(amount: dict[str, Any], unit: dict[str, Any], hours: float | None, time: dict[str, Any]) -> _Rate:
    """Amount an hour and its unit, of an amount in a time: so many times `hours`."""
    value, length = amount.get("value"), time.get("value")
    is_exact = all(part.get("comparator") in {None, "="} for part in (amount, time))
    if value is None or value < 0 or not unit or not hours or not length or length < 0 or not is_exact:
        return None, None
    if any("/" in name for name in (unit.get("code"), unit.get("unit")) if name):
        return None, None
    return float(value / (length * hours)), unit


def _hours(*names: Any) -> float | None:
    return next((_HOURS[name.casefold()] for name in names if name and name.casefold() in _HOURS), None)


def _of_rate(rate: dict[str, Any]) -> tuple[dict[str, Any], float | None]:
    """The unit of the amount and the hours of `mL/h`, by code and by text."""
    unit: dict[str, Any] = {}
    hours = None
    for name in ("code", "unit"):
        text = rate.get(name)
        if not text or "/" not in text:  # nearly all doses
            continue
        amount, _, time = text.rpartition("/")
        length = _hours(time.strip())
        if amount and length and hours in {None, length}:
            unit[name], hours = amount.strip(), length
    if "code" in unit and rate.get("system"):
        unit["system"] = rate["system"]
    return unit, hours
