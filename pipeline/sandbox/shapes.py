"""The small shapes that Epic's resources share: ids, references, instants, codeable concepts.

No resource is built here, and nothing depends on a patient.
"""

from __future__ import annotations

import time
import zlib
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from pipeline.sandbox.codes import Code, code_book

__all__ = [
    "DAY",
    "EPIC",
    "SITE_ZONE",
    "Chooser",
    "Resource",
    "concept_variants",
    "condition_variants",
    "epic_id",
    "hl7_status",
    "instant",
    "local_date",
    "local_time",
    "plain_concept",
    "reference",
    "turn",
]

Resource = dict[str, Any]

DAY = 86_400
#: Epic's own arc, under which each site's local code systems live.
EPIC = "urn:oid:1.2.840.114350.1.13.0.1.7"
#: Epic writes instants in UTC; the simulated site's days are Chicago's, so that evenings fall on the next UTC day.
SITE_ZONE = ZoneInfo("America/Chicago")

_SNOMED_ALIAS = "urn:oid:2.16.840.1.113883.6.96"
_ICD10CM_ALIAS = "urn:oid:2.16.840.1.113883.6.90"
_LOCAL_SYSTEM = {"lab": ".2.768282", "condition": ".2.696871", "drug": ".2.698288", "procedure": ".2.696580"}


class Chooser:
    """Weighted choice with the weights summed up once: `pick(rng)` is one binary search."""

    def __init__(self, weights: dict[str, float]) -> None:
        self._values = list(weights)
        total = 0.0
        self._cumulated = [total := total + weight for weight in weights.values()]

    def pick(self, rng: Random) -> str:
        return rng.choices(self._values, cum_weights=self._cumulated)[0]


def epic_id(seed: int, *parts: object, long: bool = False) -> str:
    """An id as Epic forms them: e…3 with dots and dashes, 24 characters, or 66 (FHIR allows 64) when `long`."""
    name = "/".join(map(str, (seed, *parts))).encode()
    digest = blake2b(name, digest_size=48 if long else 16).digest()
    return "e" + b64encode(digest, b".-").decode().rstrip("=") + "3"


def reference(resource_type: str, resource_id: str, display: str = "") -> Resource:
    target = {"reference": f"{resource_type}/{resource_id}"}
    return {**target, "display": display} if display else target


def turn(resource_id: str, period: int) -> int:
    """A number from 0 to `period` - 1 that is a resource's own: no other resource changes with what is made of it."""
    return zlib.crc32(resource_id.encode()) % period


def instant(seconds: int) -> str:
    """Seconds since 1970 → FHIR instant in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def local_date(seconds: int) -> str:
    """Seconds since 1970 → the date on the site's wall calendar."""
    return datetime.fromtimestamp(seconds, SITE_ZONE).date().isoformat()


def local_time(midnight: int, hour: int, minute: int) -> int:
    """Seconds since 1970 of a wall-clock time at the site, on the day that begins at UTC `midnight`."""
    day = datetime.fromtimestamp(midnight, UTC)
    return int(datetime(day.year, day.month, day.day, hour, minute, tzinfo=SITE_ZONE).timestamp())


def plain_concept(code: Code) -> Resource:
    return {"coding": [code.coding()], "text": code.display}


def hl7_status(system: str, code: str) -> Resource:
    """A CodeableConcept of one of HL7's small code systems, named by the last part of its URL."""
    return {"coding": [{"system": f"http://terminology.hl7.org/CodeSystem/{system}", "code": code}]}


def concept_variants(code: Code, kind: str) -> list[Resource]:
    """A standard coding beside a local one, in both orders, and now and then alone."""
    standard, local = code.coding(), _local_coding(code, kind)
    orders: Sequence[list[dict[str, str]]] = ([standard, local], [local, standard], [standard])
    return [{"coding": coding, "text": code.display} for coding in orders]


def condition_variants(snomed: Code) -> list[Resource]:
    """The ways in which Epic writes one diagnosis: by URL or by OID, either coding first, or without any coding."""
    icd = code_book().get(snomed.partner[0])
    local = _local_coding(snomed, "condition")
    orders = (
        [snomed.coding(), icd.coding(), local],
        [local, icd.coding(_ICD10CM_ALIAS), snomed.coding(_SNOMED_ALIAS)],
        [icd.coding(_ICD10CM_ALIAS), local],
        [icd.coding(), snomed.coding()],
        [snomed.coding(_SNOMED_ALIAS)],
    )
    return [{"coding": coding, "text": icd.display} for coding in orders]


def _local_coding(code: Code, kind: str) -> dict[str, str]:
    number = 1_500_000 + zlib.crc32(f"{code.system}|{code.code}".encode()) % 90_000
    return {"system": EPIC + _LOCAL_SYSTEM[kind], "code": str(number), "display": code.display.upper()[:40]}
