"""Asking rules: one query a rule, for all sites together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import psycopg

from pipeline.quality.checks.concepts import CONCEPTS_VALID, concept_finding
from pipeline.quality.checks.model import Finding, Rule, Schemas

__all__ = ["ask"]


def ask(connection: psycopg.Connection, schemas: Schemas, rules: Iterable[Rule]) -> Iterator[Finding]:
    """The rules' answers, in their order. `connection` has the etl schema on its search_path."""
    for rule in rules:
        if rule.name == CONCEPTS_VALID:
            yield concept_finding(connection, schemas, rule)
        else:
            query = rule.query.format(cdm=schemas.cdm, vocab=schemas.vocab)
            found = connection.execute(query.encode()).fetchall()
            by_site = sorted(found, key=lambda row: row[0] or "")
            yield Finding(rule, {site: int(problems) for site, problems in by_site})
