"""Any history ends where its last good versions lead: exports in any order, late, repeated, broken, corrected.

A small world of resources is exported one to four times. Each export holds some of them, each in some version, also
twice, also broken, also entered in error. Whatever the order in which the exports are loaded, the warehouse must then
say what an empty one says into which only the newest good version of each resource is loaded, at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.landing.store import LandedExport
from pipeline.publication.link_roles import NO_FACTS
from pipeline.publication.steps import bulk
from tests.databases import empty
from tests.integration.support import Warehouse, encounter, observation, patient, reference
from tests.property_examples import histories
from tests.warehouse_content import Content, warehouse_content

#: Versions of a resource. `same` and `other` differ in a value, `wrong` is entered in error, `broken` cannot be loaded.
VERSIONS = ("same", "other", "wrong", "broken")


@dataclass(frozen=True)
class Line:
    """One line of an export."""

    resource_type: str
    resource_id: str
    version: str

    @property
    def key(self) -> tuple[str, str]:
        return self.resource_type, self.resource_id

    @property
    def person(self) -> str:
        """The person is fixed by the id: o1 belongs to p1."""
        return f"p{self.resource_id[-1]}"

    def resource(self) -> dict[str, Any]:
        return {"resourceType": self.resource_type, **_MADE_BY[self.resource_type](self)}


#: An export: its lines in order. The transaction times of a world's exports rise with their places.
Export = tuple[Line, ...]


#: Sub-encounters, unless their version says otherwise: g1 is a part of f1, f1 of e1.
_PARENTS = {"f1": "e1", "g1": "f1"}


def _patient(line: Line) -> dict[str, Any]:
    year = {"same": 1970, "other": 1971}.get(line.version, 1970)
    made = patient(line.resource_id, birthDate=f"{year}-05-06")
    if line.resource_id == "p3" and line.version != "other":
        made["link"] = [{"type": "replaced-by", "other": reference("Patient", "p1")}]
    return made | ({"gender": 7} if line.version in ("broken", "wrong") else {})


def _encounter(line: Line) -> dict[str, Any]:
    day = "2025-01-02" if line.version != "other" else "2025-01-03"
    hour = {"f1": 17, "g1": 19}.get(line.resource_id, 15)  # which visit is the preceding one must not hang on ids
    period = {"start": f"{day}T{hour}:00:00Z", "end": f"{day}T{hour + 1}:00:00Z"}
    made = encounter(line.resource_id, line.person, period=period)
    if line.resource_id in _PARENTS and line.version != "other":
        made["partOf"] = reference("Encounter", _PARENTS[line.resource_id])
    return made | _status(line, good="finished", wrong="entered-in-error")


def _observation(line: Line) -> dict[str, Any]:
    quantity = {"value": 1.5 if line.version != "other" else 2.5}
    encounters = {"q1": "f1", "r1": "g1"}
    visit = {"encounter": reference("Encounter", encounters.get(line.resource_id, f"e{line.resource_id[-1]}"))}
    made = observation(line.resource_id, line.person, valueQuantity=quantity, **visit)
    if line.version == "undated":
        del made["effectiveDateTime"]
    return made | _status(line, good="final", wrong="entered-in-error")


def _condition(line: Line) -> dict[str, Any]:
    """The other version's code is of another domain in no vocabulary: its row moves or loses its concept."""
    code = "44054006" if line.version != "other" else "none-such"
    verification = "entered-in-error" if line.version == "wrong" else "confirmed"
    made = {
        "id": line.resource_id,
        "verificationStatus": {"coding": [{"code": verification}]},
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": code}]},
        "subject": reference("Patient", line.person),
        "encounter": reference("Encounter", f"e{line.resource_id[-1]}"),
    }
    if line.resource_id != "d1":  # that one is dated by its encounter
        made["onsetDateTime"] = "2025-01-02"
    return made | ({"onsetDateTime": 7} if line.version == "broken" else {})


def _request(line: Line) -> dict[str, Any]:
    made = {
        "id": line.resource_id,
        "intent": "order",
        "subject": reference("Patient", line.person),
        "authoredOn": "2025-01-02" if line.version != "other" else "2025-01-04",
        "medicationReference": reference("Medication", "med"),
    }
    return made | _status(line, good="active", wrong="entered-in-error")


def _medication(line: Line) -> dict[str, Any]:
    code = "314076" if line.version != "other" else "314077"
    coding = {"system": "http://www.nlm.nih.gov/research/umls/rxnorm", "code": code}
    made = {"id": line.resource_id, "code": 7 if line.version == "shapeless" else {"coding": [coding]}}
    unknown = [{"url": "http://example.org/unknown"}]
    return made | ({"modifierExtension": unknown} if line.version in ("broken", "wrong") else {})


def _status(line: Line, *, good: str, wrong: str) -> dict[str, Any]:
    return {"status": {"wrong": wrong, "broken": 7}.get(line.version, good)}


_MADE_BY = {
    "Patient": _patient,
    "Encounter": _encounter,
    "Observation": _observation,
    "Condition": _condition,
    "MedicationRequest": _request,
    "Medication": _medication,
}
#: In every world; a Patient or a Medication that is in error says nothing (it has no such status): it counts as broken.
KEYS = (
    ("Patient", "p1"),
    ("Patient", "p2"),
    ("Patient", "p3"),
    ("Encounter", "e1"),
    ("Encounter", "f1"),
    ("Encounter", "g1"),
    ("Observation", "o1"),
    ("Observation", "o2"),
    ("Observation", "o3"),
    ("Observation", "q1"),
    ("Observation", "r1"),
    ("Condition", "c1"),
    ("Condition", "d1"),
    ("MedicationRequest", "m1"),
    ("Medication", "med"),
)
#: Without d1: one whose encounter is taken back keeps its rows, which loading the last versions alone does not show.
RANDOM_KEYS = tuple(key for key in KEYS if key[1] != "d1")


def _is_good(line: Line) -> bool:
    return line.version in ("same", "other") or (
        line.version == "wrong" and line.resource_type not in ("Patient", "Medication")
    )


def last_good(exports: Sequence[Export]) -> Export:
    """The newest version of each resource that can be loaded, given the persons who ever came."""
    good = [line for export in exports for line in export if _is_good(line)]
    persons = {line.resource_id for line in good if line.resource_type == "Patient"}
    loadable = [
        line
        for line in good
        if line.resource_type in ("Patient", "Medication") or line.version == "wrong" or line.person in persons
    ]
    found = {line.key: line for line in loadable}
    encounters = {resource_id for resource_type, resource_id in found if resource_type == "Encounter"}
    return tuple(
        line for line in found.values() if line.resource_id != "d1" or line.version == "wrong" or "e1" in encounters
    )


def files(export: Export) -> Mapping[str, list[Mapping[str, Any] | bytes]]:
    by_type: dict[str, list[Mapping[str, Any] | bytes]] = {"Patient": []}
    for line in export:
        by_type.setdefault(line.resource_type, []).append(line.resource())
    return by_type


@dataclass
class History:
    """Loads exports into one database and empties it again: faster than a database an example."""

    warehouse: Warehouse = field(repr=False)

    def content(self) -> Content:
        with self.warehouse.runtime.connect() as connection:
            content = warehouse_content(connection)
        content.pop("dead_letter", None)  # of what was broken: what has come of it is the matter here
        # References to medications are kept of superseded lines too: at worst a request is mapped once more.
        links = Counter(
            {row: count for row, count in content.pop("reference", Counter()).items() if row[1] in NO_FACTS}
        )
        if links:
            content["reference"] = links
        return content

    def after(self, exports: Sequence[Export], order: Sequence[int]) -> Content:
        """The content after the exports were landed at their times and loaded in this order."""
        self._clear()
        landed: list[LandedExport] = [self.warehouse.land(files(export)) for export in exports]
        for place in order:
            self.warehouse.ingest(landed[place])
        return self.content()

    def _clear(self) -> None:
        with self.warehouse.runtime.connect() as connection:
            empty(connection)


@pytest.fixture(scope="module")
def history(module_warehouse: Warehouse) -> History:
    """One for all tests: each of them empties it first."""
    return History(module_warehouse)


lines = st.builds(
    lambda key, version: Line(key[0], key[1], version), st.sampled_from(RANDOM_KEYS), st.sampled_from(VERSIONS)
)
exports_of_a_world = st.lists(st.lists(lines, min_size=1, max_size=8).map(tuple), min_size=1, max_size=4)


@histories(6)
@given(exports=exports_of_a_world, data=st.data())
def test_any_history_ends_in_the_last_good_versions(
    history: History, exports: list[Export], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(exports))))
    reached = history.after(exports, order)
    expected = history.after([last_good(exports)], [0])
    assert reached == expected


def resource(name: str, version: str = "same") -> Line:
    """One of KEYS by its id, in a version."""
    key = next(key for key in KEYS if key[1] == name)
    return Line(key[0], key[1], version)


def world(*exports: str) -> list[Export]:
    """Each export as text: `p1 o1:other`."""
    return [tuple(resource(*word.split(":")) for word in export.split()) for export in exports]


@pytest.mark.deep
@pytest.mark.parametrize(
    ("exports", "order"),
    [
        (world("p1 o1", "p1 o1:other"), (0, 1)),
        (world("p1 o1", "p1 o1:wrong", "p1 o1"), (0, 1, 2)),
        (world("p1 e1 o1", "p1 e1:wrong o1", "p1 e1 o1:other"), (0, 1, 2)),
        (world("o1 c1 m1", "med", "e1", "p1"), (0, 1, 2, 3)),
        (world("p1 o1", "p1 o1:broken"), (0, 1)),
        (world("p1 o1:other o1"), (0,)),
        (world("p1 o1 o1:broken"), (0,)),
        (world("p1 m1 med", "p1 med:other"), (0, 1)),
        (world("p1 m1 med:other", "p1 med:broken"), (0, 1)),
        (world("p1 m1 med med:other"), (0,)),
        (world("p1 m1 med:other med"), (0,)),
        (world("p1 o1", "p1 o1:other"), (1, 0)),
        (world("p1 o1", "p1 o1:other", "p1 o1"), (1, 0, 2)),
        (world("o1", "o1:other", "p1"), (1, 0, 2)),
        (world("p1 o1:other o1", "e1"), (0, 1)),
        (world("p1 m1:other m1", "med"), (0, 1)),
        (world("p1 med m1", "p1 med:other"), (1, 0)),
        (world("o1", "o1:other", "p1"), (1, 2, 0)),
        (world("o1", "o1:other", "p1"), (0, 1, 2)),
        (world("p1 o1:other", "o1:broken"), (1, 0)),
        (world("p1 o2 p2", "p1", "o2"), (2, 1, 0)),
        (world("o1 p1", "o1"), (1, 0)),
        (world("p1 p1 o2 p1 p1 p2", "p1", "o2"), (2, 1, 0)),
        (world("p1:other o1", "p1"), (1, 0)),
        (world("p1 o1 o1:undated"), (0,)),
        (world("p1 d1", "e1"), (0, 1)),
        (world("d1", "e1", "p1"), (0, 1, 2)),
        (world("p1 d1 e1", "e1:other"), (0, 1)),
        (world("p1 d1 e1", "e1:other"), (1, 0)),
        (world("p1 e1 f1 q1", "p1"), (0, 1)),
        (world("p1 f1 q1", "p1 e1"), (0, 1)),
        (world("p1 q1", "p1 f1", "p1 e1"), (0, 1, 2)),
        (world("p1 e1 f1 q1", "p1 e1:wrong"), (0, 1)),
        (world("p1 e1 f1 q1", "p1 f1:other"), (0, 1)),
        (world("p1 e1 f1:other q1", "p1 f1"), (0, 1)),
        (world("p1 e1 f1 q1", "p1 f1:wrong", "f1"), (0, 1, 2)),
        (world("p1 e1 f1 g1 q1 r1", "p1 e1:wrong", "e1:other"), (0, 1, 2)),
        (world("p1 g1 r1", "p1 e1", "f1 q1"), (0, 1, 2)),
        (world("p1 e1 f1 g1 q1 r1", "f1:other"), (0, 1)),
        (world("p1 e1 f1 g1 q1 r1", "f1:wrong"), (0, 1)),
        (world("p1 e1 f1 g1 q1 r1", "p1 e1 f1:wrong q1"), (1, 0)),
        (world("p1 p3 o3", "p1"), (0, 1)),
        (world("p3 o3", "p1"), (0, 1)),
        (world("p3 o3 p1", "p3:other"), (0, 1)),
        (world("p3:other o3 p1", "p3"), (0, 1)),
        (world("p3:other o3 p1", "p3", "p3:other o3:other"), (0, 1, 2)),
        (world("p3 p1", "o3", "p3:other"), (0, 1, 2)),
        (world("p3 o3 p1", "p3:other"), (1, 0)),
    ],
)
def test_histories_that_are_easily_got_wrong(history: History, exports: list[Export], order: tuple[int, ...]) -> None:
    reached = history.after(exports, order)
    assert reached == history.after([last_good(exports)], [0])


def test_a_version_that_came_back_is_newer_than_one_between(history: History) -> None:
    exports = world("p1 o1", "p1 o1:other", "p1 o1")
    assert history.after(exports, (0, 2, 1)) == history.after([last_good(exports)], [0])


def test_a_broken_medication_is_a_dead_letter(history: History) -> None:
    exports = world("p1 m1 med:other", "p1 med:shapeless")
    assert history.after(exports, (0, 1)) == history.after([last_good(exports)], [0])


@pytest.mark.parametrize(
    "exports",
    [
        world("med", "p1 o1 m1"),
        world("o1", "p1 e1 c1"),
        world("p1 o1 m1 med"),
        world("p1 p3 o3 e1 f1 g1 q1 r1"),
    ],
)
def test_a_large_first_load_ends_the_same(
    history: History, monkeypatch: pytest.MonkeyPatch, exports: list[Export]
) -> None:
    """Indices are dropped for it and made again."""
    monkeypatch.setattr(bulk, "_BULK_ROWS", 1)
    assert history.after(exports, range(len(exports))) == history.after([last_good(exports)], [0])
