"""Which rows may be about a time before anybody met the patient here, and how their lineage says when that was.

Nothing here needs a database: processes that transform lines read it.
"""

from __future__ import annotations

from datetime import date

__all__ = ["CONTACT_DATE", "CONTACT_TABLES", "NO_CONTACT"]

#: Column of the lineage of `CONTACT_TABLES` (date): the day of the contact by which the row is known (the encounter's start,
#: else when its resource was recorded, issued, written), where that is after the row's own date. NULL: the row's own date.
CONTACT_DATE = "contact_date"

CONTACT_TABLES = (
    "condition_occurrence",
    "drug_exposure",
    "procedure_occurrence",
    "device_exposure",
    "measurement",
    "observation",
    "note",
    "specimen",
)

#: `contact_date` of a row whose own date is made up: no day of contact is known.
NO_CONTACT = date(9999, 12, 31)
