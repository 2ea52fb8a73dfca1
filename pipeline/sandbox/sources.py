"""Where a simulated group's resources come from: the generator, or a folder of NDJSON files."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

import orjson

from pipeline.core.errors import UsageError
from pipeline.sandbox.generator import RESOURCE_TYPES, generate

__all__ = ["EXPORTED_TYPES", "FolderSource", "GeneratedSource"]

_log = logging.getLogger(__name__)
_EXPORTED = """
    AdverseEvent AllergyIntolerance Appointment Binary BodyStructure CarePlan CareTeam Claim Communication Condition
    Consent Coverage Device DeviceRequest DeviceUseStatement DiagnosticReport DocumentReference Encounter Endpoint
    EpisodeOfCare ExplanationOfBenefit FamilyMemberHistory Flag Goal Group ImagingStudy Immunization
    ImmunizationRecommendation Library List Location Media Medication MedicationAdministration MedicationDispense
    MedicationRequest MedicationStatement NutritionOrder Observation Organization Patient Practitioner PractitionerRole
    Procedure Provenance Questionnaire QuestionnaireResponse RelatedPerson RequestGroup ResearchStudy ResearchSubject
    ServiceRequest Specimen Substance Task
"""
#: The types that Epic's bulk export may be asked for, with the rest of US Core's: what `_type` may name.
EXPORTED_TYPES = frozenset(_EXPORTED.split())
_TYPES_BY_LENGTH = sorted(EXPORTED_TYPES, key=len, reverse=True)
_TYPE_NAME = re.compile(r"[A-Z][A-Za-z]{2,63}")


@dataclass(frozen=True)
class GeneratedSource:
    """The `part`-th of `parts` equal shares of a world of synthetic patients."""

    patients: int
    seed: int
    part: int = 0
    parts: int = 1

    def resource_types(self) -> Collection[str]:
        return RESOURCE_TYPES

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        return generate(self.patients, self.seed, first_day, day, types=types, share=(self.part, self.parts))


@dataclass(frozen=True)
class FolderSource:
    """The lines of `<ResourceType>*.ndjson` and `.ndjson.gz` files, byte for byte, broken ones too.

    A file's type is the one that its name begins with, else the first `resourceType` that can be read in it.
    Time does not move such a group on. Raises UsageError when the folder is missing or has no NDJSON file.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"There is no folder {self.folder}.", "Name a folder that holds NDJSON files.")
        if not self._files:
            raise UsageError(
                f"{self.folder} has no NDJSON file whose resource type can be recognised.",
                "Files are named <ResourceType>.ndjson or <ResourceType>.ndjson.gz.",
            )

    @cached_property
    def _files(self) -> list[tuple[str, Path]]:
        paths = sorted([*self.folder.glob("*.ndjson"), *self.folder.glob("*.ndjson.gz")])
        typed = []
        for path in paths:
            if resource_type := _type_of(path):
                typed.append((resource_type, path))
            else:
                _log.warning("%s is not served: neither its name nor a line says its resource type.", path)
        return typed

    def resource_types(self) -> Collection[str]:
        return tuple(dict.fromkeys(resource_type for resource_type, _ in self._files))

    def lines(self, types: Collection[str], first_day: date, day: int) -> Iterator[tuple[str, bytes]]:
        del first_day, day
        for resource_type, path in self._files:
            if resource_type in types:
                yield from ((resource_type, line) for line in _lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    """Physical lines without their line feed; a carriage return before it stays."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        for line in stream:
            yield line.removesuffix(b"\n")


def _type_of(path: Path) -> str | None:
    for resource_type in _TYPES_BY_LENGTH:
        if path.name.startswith(resource_type):
            return resource_type
    for line in _lines(path):
        try:
            resource = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        named = resource.get("resourceType") if isinstance(resource, dict) else None
        if isinstance(named, str) and _TYPE_NAME.fullmatch(named):
            return named
    return None
