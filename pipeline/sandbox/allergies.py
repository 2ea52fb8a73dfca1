"""AllergyIntolerances of one synthetic person as they usually come. Others: `seldom/allergies.py`."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.codes import code_book
from pipeline.sandbox.people import Person
from pipeline.sandbox.shapes import DAY, Resource, epic_id, hl7_status, instant, plain_concept

__all__ = ["allergies"]


def allergies(person: Person) -> Iterator[Resource]:
    """At most two, confirmed and active."""
    book = code_book()
    known, substances, reactions = book.of("allergy"), book.of("allergy-substance"), book.of("allergy-reaction")
    for number in range(person.rng.choices([0, 1, 2], [45, 40, 15])[0]):
        allergy: Resource = {
            "resourceType": "AllergyIntolerance",
            "id": epic_id(person.seed, "AllergyIntolerance", person.index, number),
            "clinicalStatus": hl7_status("allergyintolerance-clinical", "active"),
            "verificationStatus": hl7_status("allergyintolerance-verification", "confirmed"),
            "type": person.rng.choice(["allergy", "intolerance"]),
            "category": [person.rng.choice(["medication", "food", "environment"])],
            "code": plain_concept(person.rng.choice(known + substances)),
            "patient": person.subject,
        }
        if person.rng.random() < 0.85:
            allergy["recordedDate"] = instant(person.now - person.rng.randrange(30, 2000) * DAY)
        if person.rng.random() < 0.5:
            allergy["reaction"] = [{"manifestation": [plain_concept(person.rng.choice(reactions))]}]
        yield allergy
