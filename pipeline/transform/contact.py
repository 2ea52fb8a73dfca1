"""On which day of contact a row came to be known: what its lineage says beside the row's own date (`omop_schema.contact`).

A diagnosis of 1995 that was recorded in 2024 is about 1995, but nobody observed the patient then. Which columns say when a
resource was recorded is the mapping's `contact`. What observation periods make of it is in publication.
"""

from __future__ import annotations

import polars as pl

from omop_schema.contact import CONTACT_DATE, NO_CONTACT
from pipeline.fhir.datetimes import parsed
from pipeline.transform.column_names import IMPLAUSIBLE, MADE_UP
from pipeline.transform.rules import Derivation

__all__ = ["with_contact_date"]


def with_contact_date(rows: pl.DataFrame, recorded: tuple[str, ...], derivation: Derivation) -> pl.DataFrame:
    """Adds contact_date (Date) to rows that have a start_date, where there is anything to say.

    It is the first day that the columns `recorded` (FHIR dates) give, where that is after the start, NO_CONTACT where the
    start is made up or implausible, else NULL.
    """
    made_up = [pl.col(name) for name in (MADE_UP, IMPLAUSIBLE) if name in rows.columns]
    texts = [name for name in recorded if name in rows.columns and rows[name].null_count() < rows.height]
    if not (made_up or texts) or "start_date" not in rows.columns:
        return rows
    days = [
        parsed(rows[name], derivation.site_zone, derivation.instance_zone)[f"{name}_date"].alias(f"day{number}")
        for number, name in enumerate(texts)
    ]
    # The year 9999 says that nobody knows when.
    known = [pl.when(pl.col(day.name).dt.year() < NO_CONTACT.year).then(pl.col(day.name)) for day in days]
    contact = pl.coalesce(*known, pl.lit(None, dtype=pl.Date))
    later = pl.when(contact > pl.col("start_date")).then(contact)
    is_made_up = pl.any_horizontal(*made_up).fill_null(False) if made_up else pl.lit(False)
    found = rows.with_columns(days).select(pl.when(is_made_up).then(pl.lit(NO_CONTACT)).otherwise(later))
    return rows.with_columns(found.to_series().alias(CONTACT_DATE))
