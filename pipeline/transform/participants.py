"""Who of an Encounter's participants is the provider of the visit.

Not here: what a reference leads to (`references`), and which period a visit has (`rules.visits`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.fhir.datetimes import is_calendar_date

__all__ = ["visit_provider"]

#: Codes of v3-ParticipationType, who bears most of the care first: attender, primary and secondary performer, consultant,
#: admitter, discharger. Those with another type, or none, come after them.
_ORDER = {kind: rank for rank, kind in enumerate(("ATND", "PPRF", "SPRF", "CON", "ADM", "DIS"))}
_OTHERS = len(_ORDER)
#: Who sent the patient gives no care in the visit.
_REFERRER = "REF"
#: The same in words, where a site has no code of these, or only its own: displays of the code system, and what is usual.
_WORDS = {
    **dict.fromkeys(("attender", "attending", "attending provider", "attending physician"), "ATND"),
    "primary performer": "PPRF",
    "secondary performer": "SPRF",
    **dict.fromkeys(("consultant", "consulting provider", "consulting physician"), "CON"),
    **dict.fromkeys(("admitter", "admitting", "admitting provider", "admitting physician"), "ADM"),
    **dict.fromkeys(("discharger", "discharging", "discharging provider", "discharging physician"), "DIS"),
    **dict.fromkeys(("referrer", "referring", "referring provider", "referring physician"), _REFERRER),
}

_Span = tuple[datetime, datetime]
_EVER = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


def visit_provider(first: Callable[[Any], int | None], site_zone: str) -> Callable[[dict[str, Any]], int | None]:
    """Converter Encounter → the provider, as `first` (`references.ReferenceReader.first`) reads references.

    By the kind of participation; of several of one kind the one whose period covers the start of the visit, else the
    first in the resource. One that cannot be a provider (a RelatedPerson) leaves the place to the next.
    """
    zone = ZoneInfo(site_zone)

    def convert(encounter: dict[str, Any]) -> int | None:
        participants = encounter.get("participant")
        if not participants:
            return None
        if participants.__class__ is not list:
            raise ValueError("expected an array of participants")
        ranked = [(rank, one) for one in participants if (rank := _rank(one)) is not None and one.get("individual")]
        if len(ranked) > 1:
            ranks = [rank for rank, _ in ranked]
            start = None if len(set(ranks)) == len(ranks) else _span((encounter.get("period") or {}).get("start"), zone)
            ranked.sort(key=lambda pair: (pair[0], not _covers(pair[1].get("period"), start, zone)))
        return first([one["individual"] for _, one in ranked]) if ranked else None

    return convert


def _rank(participant: dict[str, Any]) -> int | None:
    """The best of the participant's kinds, in whatever system their codes are, else in words; None for who only referred."""
    kinds = participant.get("type") or ()
    codings = [coding for kind in kinds for coding in kind.get("coding") or ()]
    found = {str(coding["code"]).upper() for coding in codings if coding.get("code")}
    if not found & _KNOWN:
        words = [*(coding.get("display") for coding in codings), *(kind.get("text") for kind in kinds)]
        found = {_WORDS.get(" ".join(str(word).casefold().split()), "") for word in words if word}
    if known := _ORDER.keys() & found:
        return min(_ORDER[code] for code in known)
    return None if _REFERRER in found else _OTHERS


_KNOWN = frozenset((*_ORDER, _REFERRER))


def _covers(period: Any, start: _Span | None, zone: ZoneInfo) -> bool:
    """Whether a period lasts at the start, each as exact as it is written."""
    if not period or start is None:
        return False
    begin, end = _span(period.get("start"), zone), _span(period.get("end"), zone)
    if begin is None and end is None:
        return False
    return (begin or _EVER)[0] <= start[1] and start[0] <= (end or _EVER)[1]


def _span(text: Any, zone: ZoneInfo) -> _Span | None:
    """The first and last moment of a FHIR date or dateTime; None for what is none."""
    if text.__class__ is not str or not is_calendar_date(text):
        return None
    try:
        if len(text) > len("2024-01-01"):
            moment = datetime.fromisoformat(text)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=zone)
            return moment, moment
        first = datetime.fromisoformat(f"{text}-01-01"[:10] if len(text) == len("2024") else f"{text}-01"[:10])
        first = first.replace(tzinfo=zone)
        days = {4: 365, 7: 27}.get(len(text), 0)
        return first, first + timedelta(days=days, hours=23, minutes=59, seconds=59)
    except (ValueError, OverflowError):  # a leap second, the last days of the calendar
        return None
