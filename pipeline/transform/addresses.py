"""Addresses → location rows by content: one row for each distinct normalised content, many resources to one row.

A patient's address keeps state, three-digit zip and country only, never the street, the town or a position; an
organisation's is not patient data. Here
is also which Location is no site at all but where somebody lives.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import polars as pl

from pipeline.fhir.identity import content_key
from pipeline.transform.us_states import PROVINCES, STATES, TERRITORIES

__all__ = ["COUNTRIES", "RESTRICTED_ZIP3", "Addresses", "country_name", "is_home"]

#: Three-digit zips with 20,000 people or fewer (HIPAA safe harbor, Census 2000): "000" stands for them.
RESTRICTED_ZIP3 = frozenset(
    (
        "036",
        "059",
        "063",
        "102",
        "203",
        "556",
        "692",
        "790",
        "821",
        "823",
        "830",
        "831",
        "878",
        "879",
        "884",
        "890",
        "893",
    )
)

_STATE = re.compile("[A-Za-z]{2}")
#: ISO 3166, of two or three letters.
_COUNTRY = re.compile("[A-Za-z]{2,3}")
#: Three digits of it, five, or nine; of four a zero at the beginning got lost, or it is another country's.
_ZIP3 = re.compile(r"\s*([0-9]{3})(?:[0-9]{2}(?:\s*[-‐‑–—]?\s*[0-9]{4}|\s*[-‐‑–—])?)?\s*")
_ZIP_PLUS_4 = re.compile(r"([0-9]{5})\s*(?:[-‐‑–—]\s*([0-9]{4})?|([0-9]{4}))")
_ISO_STATE = re.compile("(?:US|CA)-([A-Z]{2})", re.IGNORECASE)
_UNITED_STATES = frozenset(
    ("us", "usa", "u s", "u s a", "united states", "the united states", "united states of america", "840")
)

_STATES = STATES | PROVINCES
_STATE_CODES = frozenset(STATES.values())
_OF_UNITED_STATES = _UNITED_STATES | TERRITORIES

_COLUMNS = ("address_1", "city", "state", "zip", "country_source_value")
_POSITION = ("latitude", "longitude")
#: FHIR's extension of an address by its position, and the most degrees that each of its two parts can have.
_GEOLOCATION = "http://hl7.org/fhir/StructureDefinition/geolocation"
_MOST_DEGREES = {"latitude": 90.0, "longitude": 180.0}

_UNSAID = re.compile("[,()]")

#: The value map in which countries are looked up, and what it calls the system of their names and codes.
COUNTRIES = "country"


def country_name(text: str) -> str:
    """A country's name or code as the value map `country` has it: in lower case, without dots, commas and brackets."""
    return " ".join(_UNSAID.sub(" ", text.casefold().replace(".", "").replace("’", "'")).split())


class Addresses:
    """Collects the distinct addresses that a chunk's resources have. `countries`: names of the value map `country`."""

    def __init__(self, countries: Collection[str] = (), *, keeps_foreign_codes: bool = False) -> None:
        self._countries = frozenset(countries)
        self._content: dict[int, tuple[str | float | None, ...]] = {}
        self._keeps_foreign_codes = keeps_foreign_codes

    def of_patient(self, patient: dict[str, Any]) -> int | None:
        """Key of the home (else first) address: state, three-digit zip, country code; by option codes of other countries."""
        address = _preferred(patient.get("address"))
        if address is None:
            return None
        code = _zip(address) if self._keeps_foreign_codes and _is_elsewhere(address) else _zip3(address)
        return self._add(None, None, _state(address), code, self._known_country(address))

    def of_site(self, resource: dict[str, Any]) -> int | None:
        """Key of an Organization's or Location's address and position."""
        address = _preferred(resource.get("address")) or {}
        lines = address.get("line") or [None]
        return self._add(
            str(lines[0])[:50] if lines[0] else None,
            _text(address, "city", 50),
            _state(address),
            _zip(address),
            _country(address),
            position=_position(resource, address),
        )

    def _add(self, *texts: str | None, position: tuple[float | None, ...] = (None, None)) -> int | None:
        if not any(texts) and position == (None, None):
            return None
        parts = [] if position == (None, None) else [str(degrees) for degrees in position]
        key = content_key("location", *texts, *parts)
        self._content[key] = (*texts, *position)
        return key

    def _known_country(self, address: dict[str, Any]) -> str | None:
        """A patient's country where it is a code, or one that the value map knows. FHIR takes any text there, and a text
        can hold the rest of an address."""
        country = _country(address)
        if country is None:
            return None
        if _COUNTRY.fullmatch(country):
            return country.upper()
        return country if country_name(country) in self._countries else None

    def frame(self) -> pl.DataFrame:
        """Columns location_id (content key) and the location's columns; forgets them."""
        rows = [(key, *content) for key, content in self._content.items()]
        self._content.clear()
        schema = {
            "location_id": pl.Int64,
            **dict.fromkeys(_COLUMNS, pl.String),
            **dict.fromkeys(_POSITION, pl.Float64),
        }
        return pl.DataFrame(rows, schema=schema, orient="row")


#: A house, and a patient's residence: by FHIR's location-physical-type, v3-RoleCode and SNOMED CT; whatever the system
#: is called, because a home that is taken for a site shows who lives there.
_HOMES = frozenset(("ho", "PTRES", "ptres", "264362003"))
#: The place of service of CMS, whose codes are numbers that other systems have, too.
_CMS_HOME, _CMS = "12", "place_of_service"
#: Parts of the names of systems whose codes say what a place is: beside a code of another one, such as a site's own, the
#: words count.
_SYSTEMS = (_CMS, "location_physical_type", "rolecode", "servicedeliverylocationroletype", "snomed")
_HOME_TEXTS = frozenset(
    (
        *("home", "house", "patient home", "patient's home", "patient residence", "patient's residence"),
        *("private home", "private residence", "residence", "home of patient", "home of the patient"),
    )
)


def is_home(location: dict[str, Any]) -> bool | None:
    """Whether a Location is where a person lives, by its physical type, its types or the use of its address, or is a part
    of a contained one; else None.

    What has no code, or only codes of a site's own, counts by its texts. What is a part of a home of another line is found
    by publication (`pipeline.publication.steps.homes`).
    """
    types = location.get("type") or []
    if types.__class__ is not list:
        raise ValueError("expected an array of CodeableConcept")
    if location.get("address") and location["address"].get("use") == "home":
        return True
    physical = location.get("physicalType")
    if any(_says_home(concept) for concept in ([*types, physical] if physical else types)):
        return True
    above = (location.get("partOf") or {}).get("reference")
    contained = (one for one in location.get("contained") or () if above and f"#{one.get('id')}" == above)
    return True if any(one is not location and is_home(one) for one in contained) else None


def _says_home(concept: dict[str, Any]) -> bool:
    is_known = False
    for coding in concept.get("coding") or ():
        if not coding.get("code"):
            continue
        code, system = str(coding["code"]), str(coding.get("system")).casefold().replace("-", "_")
        if code in _HOMES or (code == _CMS_HOME and _CMS in system):
            return True
        is_known = is_known or any(name in system for name in _SYSTEMS)
    texts = [concept.get("text"), *(coding.get("display") for coding in concept.get("coding") or ())]
    return not is_known and any(" ".join(str(text).casefold().split()) in _HOME_TEXTS for text in texts if text)


def _preferred(addresses: Any) -> dict[str, Any] | None:
    if isinstance(addresses, dict):  # Location.address is one, Organization.address and Patient.address are many
        return addresses
    if not addresses:
        return None
    current = [address for address in addresses if address.get("use") != "old"] or addresses
    # One whose period has an end is the former one, where another has none.
    current = [address for address in current if not (address.get("period") or {}).get("end")] or current
    home = [address for address in current if address.get("use") == "home"]
    found: dict[str, Any] = (home or current)[0]
    return found


def _text(address: dict[str, Any], name: str, length: int) -> str | None:
    value = address.get(name)
    return str(value).strip()[:length] or None if value else None


def _state(address: dict[str, Any]) -> str | None:
    """The two-letter code, also of a state by its name. The column holds no more, and a longer name cut to it would be
    another state's code."""
    state = _text(address, "state", 50)
    if not state:
        return None
    plain = " ".join(state.replace(".", "").replace(",", " ").split())
    match = _ISO_STATE.fullmatch(plain)
    plain = match[1] if match else plain
    return plain.upper() if _STATE.fullmatch(plain) else _STATES.get(plain.casefold())


def _country(address: dict[str, Any]) -> str | None:
    return _text(address, "country", 80)


def _position(site: dict[str, Any], address: dict[str, Any]) -> tuple[float | None, ...]:
    """Latitude and longitude: Location.position, else the extension of the address; NULL for what is no such degree."""
    found = site.get("position") or next(
        (
            {part.get("url"): part.get("valueDecimal") for part in extension.get("extension") or ()}
            for extension in address.get("extension") or ()
            if extension.get("url") == _GEOLOCATION
        ),
        {},
    )
    return tuple(_degrees(found.get(name), most) for name, most in _MOST_DEGREES.items())


def _degrees(value: Any, most: float) -> float | None:
    if value is None:
        return None
    if value.__class__ in (bool, str, dict, list):
        raise ValueError("expected a position to be numbers")
    return float(value) if abs(value) <= most else None


def _zip(address: dict[str, Any]) -> str | None:
    """A site's postal code: of the United States its digits alone, else as it is, up to nine characters."""
    code = _text(address, "postalCode", 20)
    match = _ZIP_PLUS_4.fullmatch(code) if code else None
    return "".join(part for part in match.groups() if part) if match else _text(address, "postalCode", 9)


def _is_elsewhere(address: dict[str, Any]) -> bool:
    """Whether the country is one that has no postal codes of the United States; without one, whether the state's code is."""
    country = _country(address)
    if country is None:
        state = _state(address)
        return state is not None and state not in _STATE_CODES
    return country_name(country) not in _OF_UNITED_STATES


def _zip3(address: dict[str, Any]) -> str | None:
    """The first three digits of a patient's zip; of other countries' codes nothing: how many people share one is not
    known."""
    postal_code = address.get("postalCode")
    match = _ZIP3.fullmatch(postal_code) if isinstance(postal_code, str) and not _is_elsewhere(address) else None
    if match is None:
        return None
    return "000" if match[1] in RESTRICTED_ZIP3 else match[1]
