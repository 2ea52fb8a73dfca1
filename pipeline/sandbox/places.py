"""Locations that patients share: wards of all organizations, and of the hospital its building, rooms and beds."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sandbox.shapes import EPIC, Resource, epic_id, hl7_status, reference

__all__ = ["Places"]

_WARDS = ("Emergency Department", "Medical Ward 3 East", "Family Medicine Clinic", "Heart Clinic", "Laboratory Draw")
#: The first wards of the first organization are units of its hospital, with a room and a bed each.
_UNITS = 2


class Places:
    """Ids depend on the seed alone. `wards` are the ids of the wards, five an organization."""

    def __init__(self, seed: int, organizations: list[str]) -> None:
        self._organizations = organizations
        self.wards = [epic_id(seed, "Location", n) for n in range(len(organizations) * len(_WARDS))]
        self._hospital = epic_id(seed, "Location", "hospital")
        self._rooms = [epic_id(seed, "Location", "room", unit) for unit in range(_UNITS)]
        self._beds = [epic_id(seed, "Location", "bed", unit) for unit in range(_UNITS)]

    def stay(self, number: int) -> list[str]:
        """Ids of what Epic lists of one stay: unit, unit, hospital, room and bed."""
        unit = number % _UNITS
        return [self.wards[unit], self.wards[unit], self._hospital, self._rooms[unit], self._beds[unit]]

    def locations(self) -> Iterator[Resource]:
        yield from (self._ward(number) for number in range(len(self.wards)))
        yield self._building()
        for unit, (room, bed) in enumerate(zip(self._rooms, self._beds, strict=True)):
            yield self._inside(room, f"Room {unit + 301}", "ro", self.wards[unit])
            yield self._inside(bed, f"Bed {unit + 301}-A", "bd", room)

    def _ward(self, number: int) -> Resource:
        ward = _WARDS[number % len(_WARDS)]
        owner = self._organizations[number // len(_WARDS)]
        location: Resource = {
            "resourceType": "Location",
            "id": self.wards[number],
            "status": "active",
            "name": ward,
            "mode": "instance",
            "managingOrganization": reference("Organization", owner),
        }
        if number % 3 == 0:  # Epic often leaves the type out
            code = {"system": f"{EPIC}.10.686980.30", "code": str(100 + number), "display": ward}
            location["type"] = [{"coding": [code], "text": ward}]
        if number < _UNITS:
            location |= _part_of(self._hospital, "wa")
        return location

    def _building(self) -> Resource:
        return {
            "resourceType": "Location",
            "id": self._hospital,
            "status": "active",
            "name": "Demonstration Health Hospital",
            "mode": "instance",
            "physicalType": hl7_status("location-physical-type", "bu"),
            "address": {"city": "Nowhere", "state": "Wisconsin", "postalCode": "53593-9179", "country": "USA"},
            "position": {"longitude": -89.53, "latitude": 42.99},
            "managingOrganization": reference("Organization", self._organizations[0]),
        }

    def _inside(self, location_id: str, name: str, level: str, whole: str) -> Resource:
        named = {"resourceType": "Location", "id": location_id, "status": "active", "name": name, "mode": "instance"}
        return {**named, **_part_of(whole, level)}


def _part_of(whole: str, level: str) -> Resource:
    """What a Location inside of another says of itself; `level` is a code of FHIR's physical types."""
    return {"physicalType": hl7_status("location-physical-type", level), "partOf": reference("Location", whole)}
