"""Named functions for what a view cannot say: set-based, frame in, frame out, each one rule of the specification.

A function is called with the rows of one view (resource columns joined) and a `Derivation`, which gives it concepts,
value maps, dates and the facts that other resources left. A mapping names the functions that it needs, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import polars as pl

from pipeline.transform.rules.allergies import (
    allergy_date,
    allergy_status,
    allergy_to_substance,
    named_allergy,
    reaction_of_named_allergy,
    reaction_to_substance,
)
from pipeline.transform.rules.base import INPATIENT_VISITS, Derivation
from pipeline.transform.rules.care_sites import care_site, coverage, emergency_location, provider
from pipeline.transform.rules.conditions import asserted, condition, family_history, history, not_confirmed, qualified
from pipeline.transform.rules.dates import open_period
from pipeline.transform.rules.devices import device_by_manufacture, device_use_dates, used_device
from pipeline.transform.rules.drugs import (
    administered_quantity,
    drug_administration_dates,
    drug_dispense_dates,
    drug_request_dates,
    drug_statement_dates,
    immunization,
    medication,
    route,
)
from pipeline.transform.rules.notes import (
    document_note,
    no_document,
    no_text_of_note,
    observation_note,
    report_note,
    report_texts,
)
from pipeline.transform.rules.observations import observation_date, observation_value
from pipeline.transform.rules.people import (
    birth_date,
    birth_year_only,
    death,
    person,
    race_observation,
    race_observations,
)
from pipeline.transform.rules.procedures import imaging_date, procedure
from pipeline.transform.rules.questionnaires import answer, question
from pipeline.transform.rules.specimens import specimen
from pipeline.transform.rules.visits import (
    diagnosis_use,
    discharge_against_advice,
    discharge_death,
    inpatient_visit,
    open_stay_detail,
    stay,
    visit,
)

__all__ = ["DERIVATIONS", "INPATIENT_VISITS", "Derivation"]

DERIVATIONS: Mapping[str, Callable[[pl.DataFrame, Derivation], pl.DataFrame]] = {
    function.__name__: function
    for function in (
        person,
        death,
        race_observations,
        race_observation,
        birth_date,
        birth_year_only,
        open_period,
        provider,
        care_site,
        emergency_location,
        visit,
        stay,
        open_stay_detail,
        inpatient_visit,
        discharge_against_advice,
        diagnosis_use,
        discharge_death,
        asserted,
        not_confirmed,
        qualified,
        condition,
        history,
        family_history,
        allergy_date,
        named_allergy,
        allergy_status,
        allergy_to_substance,
        reaction_of_named_allergy,
        reaction_to_substance,
        observation_date,
        observation_value,
        medication,
        drug_request_dates,
        drug_administration_dates,
        administered_quantity,
        drug_dispense_dates,
        drug_statement_dates,
        route,
        immunization,
        procedure,
        imaging_date,
        specimen,
        used_device,
        device_use_dates,
        device_by_manufacture,
        document_note,
        report_note,
        report_texts,
        no_document,
        no_text_of_note,
        observation_note,
        question,
        answer,
        coverage,
    )
}
