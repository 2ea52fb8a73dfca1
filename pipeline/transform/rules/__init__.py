"""Named functions for what a view cannot say: set-based, frame in, frame out, each one rule of the specification.

A function is called with the rows of one view (resource columns joined) and a `Derivation`, which gives it concepts,
value maps, dates and the facts that other resources left. A mapping names the functions that it needs, in order. What
each reads and makes is declared with it (`declaration.rule`); docs/writing-a-mapping.md lists them all.
"""

from __future__ import annotations

from pipeline.transform.rules import (
    administrations,
    allergies,
    care_sites,
    conditions,
    dates,
    devices,
    drugs,
    notes,
    observations,
    people,
    places,
    procedures,
    questionnaires,
    specimens,
    visits,
)
from pipeline.transform.rules.base import INPATIENT_VISITS, Derivation
from pipeline.transform.rules.declaration import RULES, Rule

__all__ = ["INPATIENT_VISITS", "RULES", "RULE_MODULES", "Derivation", "Rule"]

#: Where the rules are; importing them fills RULES.
RULE_MODULES = (
    people,
    visits,
    places,
    care_sites,
    conditions,
    allergies,
    observations,
    drugs,
    administrations,
    procedures,
    specimens,
    devices,
    notes,
    questionnaires,
    dates,
)
