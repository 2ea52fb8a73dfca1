"""Named functions for what a view cannot say: set-based, frame in, frame out, each one rule of the specification.

A function is called with the rows of one view (resource columns joined) and a `Derivation`, which gives it concepts,
value maps, dates and the facts that other resources left. A mapping names the functions that it needs, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from pipeline.omop.derive.base import INPATIENT_VISITS, Derivation
from pipeline.omop.derive.conditions import condition, history
from pipeline.omop.derive.drugs import drug_request_dates, immunization, medication, route
from pipeline.omop.derive.observations import observation_date, observation_value
from pipeline.omop.derive.people import care_site, death, person, provider
from pipeline.omop.derive.procedures import procedure
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
        observation_date,
        observation_value,
        medication,
        drug_request_dates,
        route,
        immunization,
        procedure,
    )
}
