"""What may be kept of a device: its code, the device identifier of its UDI (UDI-DI) and its lot, never its serial number.

A UDI carrier holds both in one text. The three agencies that FDA accredited write it in their own way:
https://www.fda.gov/medical-devices/unique-device-identification-system-udi-system/udi-formats-fda-accredited-issuing-agency
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["contained_device", "device_identifier", "device_lot", "device_summary", "lacks_contained_device"]

_LENGTH = 255

#: GS1: (01) and 14 digits; servers leave the parentheses out, and some digits.
_GS1 = re.compile(r"\(01\)\s*([0-9]{1,14})|^01([0-9]{14})")
_GS1_LOT = re.compile(r"\(10\)\s*([^()]{1,20})")
#: HIBCC: + and labeller, product and unit of measure up to the first slash; alone, a check character ends it.
_HIBCC = re.compile(r"^\+([A-Z][A-Z0-9]{3}[A-Z0-9]{1,18}[0-9])(/.*|.)$")
#: ICCBBA: =/ and 16 characters, or =) and 10 of a container, up to the next data structure.
_ICCBBA = re.compile(r"^=(?:/([A-Z0-9]{16})|\)([A-Z0-9]{10}))(?=[=&]|$)")
#: A device identifier that comes by itself.
_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.\- ]{0,49}")


def device_identifier(device: dict[str, Any]) -> str | None:
    """UDI-DI of the first carrier that has one: as given, else read out of the human-readable carrier."""
    for carrier in device.get("udiCarrier") or ():
        given, whole = carrier.get("deviceIdentifier"), carrier.get("carrierHRF")
        if given and (found := _identifier(given) or (given if _BARE.fullmatch(given) else None)):
            return found[:_LENGTH]
        if whole and (found := _identifier(whole)):
            return found[:_LENGTH]
    return None


def _identifier(text: str) -> str | None:
    """The identifier in a carrier's text; None where it is written as none of the agencies do."""
    text = text.strip()
    for pattern in (_GS1, _HIBCC, _ICCBBA):
        if match := pattern.search(text):
            return match[1] or match[2]
    return None


def device_lot(device: dict[str, Any]) -> str | None:
    """The lot: the element, else the one in a GS1 carrier."""
    lot = device.get("lotNumber")
    if lot:
        return str(lot)
    carriers = (carrier.get("carrierHRF") or "" for carrier in device.get("udiCarrier") or ())
    match = next((found for text in carriers if (found := _GS1_LOT.search(text))), None)
    return match[1].strip() if match else None


def device_summary(device: dict[str, Any]) -> dict[str, Any]:
    """What an exposure takes from its device: code (CodeableConcept), identifier, lot, made (date of manufacture).

    ValueError for a date that is not text: a contained device is read by no view of its own.
    """
    made = device.get("manufactureDate")
    if made is not None and not isinstance(made, str):
        raise ValueError("expected the date of manufacture to be a string")
    return {
        "code": device.get("type"),
        "identifier": device_identifier(device),
        "lot": device_lot(device),
        "made": made,
    }


def lacks_contained_device(statement: dict[str, Any]) -> bool | None:
    """True where the device is a contained one that is not there."""
    reference = (statement.get("device") or {}).get("reference")
    is_contained = isinstance(reference, str) and reference.startswith("#")
    return True if is_contained and contained_device(statement) is None else None


def contained_device(statement: dict[str, Any]) -> dict[str, Any] | None:
    """The device that a statement holds itself (`#id`), None where it is another resource."""
    reference = (statement.get("device") or {}).get("reference")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    return next((item for item in statement.get("contained") or () if item.get("id") == reference[1:]), None)
