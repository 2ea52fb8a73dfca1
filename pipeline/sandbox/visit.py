"""A synthetic visit under way."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import DAY, Chooser, Resource, epic_id, reference

__all__ = ["TYPES", "Visit"]

_KINDS = Chooser({"office": 66, "support": 12, "hospital": 8, "emergency": 8, "virtual": 4, "telephone": 2})


TYPES = {
    "office": ("101", "Office Visit"),
    "support": ("2101", "Orders Only"),
    "hospital": ("3", "Hospital Encounter"),
    "emergency": ("4", "Emergency Visit"),
    "virtual": ("76", "Telemedicine"),
    "telephone": ("70", "Telephone"),
}


@dataclass
class Visit:
    """A visit under way: who, when, and the counters that make its ids.

    `status` is drawn where it is None. While a visit is `in-progress` by order, its results are preliminary; what is
    drawn never depends on it, so that the next day's visit differs in nothing else.
    """

    person: Person
    rng: Random
    key: str
    """What makes this visit's ids different from those of the person's other visits."""
    start: int
    status: str | None = None
    first_condition_in_error: bool = False
    kind: str = field(init=False)
    id: str = field(init=False)
    encounter: Resource = field(init=False)
    _counter: int = 0

    def __post_init__(self) -> None:
        self.kind = _KINDS.pick(self.rng)
        self.id = self.new_id("Encounter", long=self.rng.random() < 0.3)
        self.encounter = reference("Encounter", self.id, TYPES[self.kind][1])

    @property
    def settled(self) -> bool:
        return self.status != "in-progress"

    @property
    def end(self) -> int:
        return self.start + (3 * DAY + 5400 if self.kind == "hospital" else 2700)

    def new_id(self, resource_type: str, *, long: bool = False) -> str:
        self._counter += 1
        return epic_id(self.person.seed, resource_type, self.person.index, self.key, self._counter, long=long)

    def belongs(self, resource: Resource, subject: str = "subject") -> Resource:
        """Add the patient, and the encounter, which Epic leaves out now and then."""
        resource[subject] = self.person.subject
        if self.rng.random() < 0.95:
            resource["encounter"] = self.encounter
        return resource

    def practitioner(self) -> Resource:
        directory = self.person.directory
        number = self.rng.randrange(len(directory.practitioners))
        return reference("Practitioner", directory.practitioners[number], directory.practitioner_name(number))
