"""Named functions for what a view cannot say: set-based, frame in, frame out, each one rule of the specification.

A function is called with the rows of one view (resource columns joined) and a `Derivation`, which gives it concepts,
value maps, dates and the facts that other resources left. A mapping names the functions that it needs, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from pipeline.omop.derive.allergies import allergy_date, allergy_to_substance, named_allergy
from pipeline.omop.derive.base import INPATIENT_VISITS, Derivation
from pipeline.omop.derive.conditions import condition, family_history, history
from pipeline.omop.derive.coverages import coverage
from pipeline.omop.derive.drugs import (
    drug_administration_dates,
    drug_dispense_dates,
    drug_request_dates,
    drug_statement_dates,
    immunization,
    medication,
    route,
)
from pipeline.omop.derive.observations import observation_date, observation_value
from pipeline.omop.derive.people import care_site, death, person, provider
from pipeline.omop.derive.procedures import imaging_date, procedure
from pipeline.omop.derive.questionnaires import answer, question
from pipeline.omop.derive.specimens import specimen
from pipeline.omop.derive.visits import discharge, visit

__all__ = ["DERIVATIONS", "INPATIENT_VISITS", "Derivation"]

DERIVATIONS: Mapping[str, Callable[[pl.DataFrame, Derivation], pl.DataFrame]] = {
    function.__name__: function
    for function in (
        person,
        death,
        provider,
        care_site,
        visit,
        discharge,
        condition,
        history,
        family_history,
        allergy_date,
        named_allergy,
        allergy_to_substance,
        observation_date,
        observation_value,
        medication,
        drug_request_dates,
        drug_administration_dates,
        drug_dispense_dates,
        drug_statement_dates,
        route,
        immunization,
        procedure,
        imaging_date,
        specimen,
        question,
        answer,
        coverage,
    )
}
