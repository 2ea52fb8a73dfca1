"""What the columns of the CDM tables mean, in a sentence each, from `cdm_descriptions.csv`: shown where people look at tables.

A module of its own: nothing that maps depends on these words.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from omop_schema.cdm_fields import Field, lines_of

__all__ = ["column_description"]

_OF_KEYS = "Identifier of the row; it stays over the nights."


def column_description(field: Field) -> str:
    """The meaning of a column of a table with lineage. KeyError for a column without a description."""
    return _OF_KEYS if field.is_primary_key else _descriptions()[field.name]


@cache
def _descriptions() -> Mapping[str, str]:
    return {line["column"]: line["description"] for line in lines_of("cdm_descriptions.csv")}
