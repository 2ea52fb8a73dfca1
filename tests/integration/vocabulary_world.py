"""Releases that differ from the demonstration vocabulary in one thing each, and resources that depend on it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.settings import MAPPINGS_FOLDER
from pipeline.warehouse.vocabulary import LoadOptions, load_vocabulary
from tests.integration.support import Warehouse, encounter, observation, patient, reference

DATES = "19700101\t20991231\t"
SNOMED, ICD10 = "http://snomed.info/sct", "http://hl7.org/fhir/sid/icd-10-cm"
RXNORM, LOINC = "http://www.nlm.nih.gov/research/umls/rxnorm", "http://loinc.org"
UCUM = "http://unitsofmeasure.org"
LOCAL = "urn:oid:1.2.3.4"

Files = dict[str, list[str]]


@dataclass(frozen=True)
class Edit:
    """A change of a download, and the resources of `WORLD` that it concerns."""

    apply: Callable[[Files], None]
    concerns: frozenset[str]


def replaced(name: str, old: str, new: str) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        assert any(old in line for line in files[name]), (name, old)
        files[name] = [line.replace(old, new) for line in files[name]]

    return apply


def added(name: str, *lines: str) -> Callable[[Files], None]:
    return lambda files: files[name].extend(lines)


def together(*edits: Callable[[Files], None]) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        for edit in edits:
            edit(files)

    return apply


_MAP_HEADER = (
    "source_code\tsource_concept_id\tsource_vocabulary_id\tsource_code_description\ttarget_concept_id"
    "\ttarget_vocabulary_id\tvalid_start_date\tvalid_end_date\tinvalid_reason"
)


def local_map(code: str, vocabulary: str, target: int) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        rows = files.setdefault("SOURCE_TO_CONCEPT_MAP.csv", [_MAP_HEADER])
        rows.append(f"{code}\t0\t{vocabulary}\t\t{target}\tSNOMED\t{DATES}")

    return apply


EDITS: Mapping[str, Edit] = {
    "maps to another": Edit(
        replaced("CONCEPT_RELATIONSHIP.csv", "35206882\t201826\tMaps to\t", "35206882\t320128\tMaps to\t"),
        frozenset(("c2",)),
    ),
    "domain of a target": Edit(
        replaced("CONCEPT.csv", "Type 2 diabetes mellitus\tCondition", "Type 2 diabetes mellitus\tObservation"),
        frozenset(("c1", "c2", "c4")),
    ),
    "target is no longer valid": Edit(
        replaced("CONCEPT.csv", "Asthma\tCondition\tSNOMED\tClinical Finding\tS\t195967001\t20020131\t20991231\t",
                 "Asthma\tCondition\tSNOMED\tClinical Finding\t\t195967001\t20020131\t20201231\tD"),
        frozenset(("c6",)),
    ),
    "code becomes known": Edit(
        together(
            added("CONCEPT.csv", f"900001\tNew test\tMeasurement\tLOINC\tLab Test\tS\t82667-7\t{DATES}"),
            added("CONCEPT_RELATIONSHIP.csv", f"900001\t900001\tMaps to\t{DATES}"),
        ),
        frozenset(("o3", "q1")),
    ),
    "local code becomes known": Edit(local_map("DIAG-7", LOCAL, 254761), frozenset(("c3",))),
    "text becomes known": Edit(local_map("Sugar disease", "text", 201826), frozenset(("c5",))),
    "ancestor of a rival": Edit(added("CONCEPT_ANCESTOR.csv", "201826\t316139\t1\t1"), frozenset(("c4",))),
    "ancestor of a drug": Edit(added("CONCEPT_ANCESTOR.csv", "1332418\t19080128\t1\t1"), frozenset(("d1", "m1"))),
    "strength of a drug": Edit(
        added("DRUG_STRENGTH.csv", f"957136\t1332418\t40\t8576\t\t\t\t\t\t{DATES}"), frozenset(("m2",))
    ),
    "unit becomes known": Edit(
        together(
            added("CONCEPT.csv", f"900002\tFurlong\tUnit\tUCUM\tUnit\tS\t[fur_us]\t{DATES}"),
            added("CONCEPT_RELATIONSHIP.csv", f"900002\t900002\tMaps to\t{DATES}"),
        ),
        frozenset(("o2",)),
    ),
    "concept of a value map": Edit(
        replaced("CONCEPT.csv", "Gender\tGender\tS\tF\t", "Gender\tGender\t\tF\t"), frozenset(("p1", "p2"))
    ),
    "concept of a code in use nowhere": Edit(
        replaced("CONCEPT.csv", "Headache\tCondition", "Headache\tObservation"), frozenset()
    ),
}  # fmt: skip


def coded(*codings: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code} for system, code in codings], **more}


def condition(resource_id: str, code: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "id": resource_id,
        "verificationStatus": {"coding": [{"code": "confirmed"}]},
        "code": code,
        "subject": reference("Patient", "p1"),
        "encounter": reference("Encounter", "e1"),
        "onsetDateTime": "2025-01-02",
        **more,
    }


def request(resource_id: str, **more: Any) -> dict[str, Any]:
    return {
        "id": resource_id,
        "status": "active",
        "intent": "order",
        "subject": reference("Patient", "p1"),
        "authoredOn": "2025-01-02",
        **more,
    }


_SUPPLY = {"quantity": {"value": 60}, "expectedSupplyDuration": {"value": 30, "system": UCUM, "code": "d"}}

WORLD: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "Patient": [patient(), patient("p2")],
    "Encounter": [encounter()],
    "Condition": [
        condition("c1", coded((SNOMED, "44054006"))),
        condition("c2", coded((ICD10, "E11.9"))),
        condition("c3", coded((LOCAL, "DIAG-7"), text="Something local")),
        condition("c4", coded((SNOMED, "44054006"), (SNOMED, "84114007"))),
        condition("c5", {"text": "Sugar  disease"}),
        condition("c6", coded((SNOMED, "195967001"))),
        # The code of others in other places and systems: none of them is concerned.
        condition("c7", coded((SNOMED, "254837009"), ("urn:other", "E11.9"), ("urn:other", "DIAG-7"), text="Not 44054006")),
    ],
    "Observation": [
        observation("o1"),
        observation("o2", valueQuantity={"value": 3, "system": UCUM, "code": "[fur_us]", "unit": "furlongs"}),
        observation("o3", code=coded((LOINC, "82667-7"))),
    ],
    "Medication": [{"id": "d1", "code": coded((RXNORM, "314076"))}],
    "MedicationRequest": [
        request("m1", medicationReference=reference("Medication", "d1"), dispenseRequest=_SUPPLY),
        request("m2", medicationCodeableConcept=coded((RXNORM, "313988")), dispenseRequest=_SUPPLY),
        request("m3", medicationCodeableConcept=coded((RXNORM, "197361")), dispenseRequest=_SUPPLY),
    ],
    "QuestionnaireResponse": [
        {
            "id": "q1",
            "status": "completed",
            "subject": reference("Patient", "p1"),
            "authored": "2025-01-02T15:00:00Z",
            "item": [{"linkId": "/88888-8/82667-7", "answer": [{"valueInteger": 3}]}],
        }
    ],
}  # fmt: skip


class Releases:
    """Loads releases into a warehouse: the demonstration vocabulary with some edits."""

    def __init__(self, warehouse: Warehouse, folder: Path) -> None:
        self._warehouse, self._folder = warehouse, folder
        self._number = 0

    def load(self, *names: str) -> str:
        """The label of the release."""
        self._number += 1
        folder = self._folder / f"release-{self._number}"
        shutil.copytree(MAPPINGS_FOLDER / "demo_vocabulary", folder)
        files = {path.name: path.read_text(encoding="utf-8").splitlines() for path in folder.glob("*.csv")}
        for name in names:
            EDITS[name].apply(files)
        label = f"v5.0 {self._number:02d}-" + "+".join(name[:3] for name in names)
        label = label[:20]
        rows = [line.split("\t") for line in files["VOCABULARY.csv"]]
        files["VOCABULARY.csv"] = [
            "\t".join([*row[:3], label, row[4]]) if row[0] == "None" else "\t".join(row) for row in rows
        ]
        # A local map stays where a download has none: each of ours says what it is.
        files.setdefault("SOURCE_TO_CONCEPT_MAP.csv", [_MAP_HEADER])
        for name, lines in files.items():
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        names = {"vocab_schema": "vocab", "etl_schema": "etl"}
        # Tiny releases lose a large share of what they have.
        load_vocabulary(self._warehouse.runtime.url, folder, **names, options=LoadOptions(force=True))
        return label
