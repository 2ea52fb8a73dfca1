"""Infusions: what is given at a rate ends where its order's next action begins (Themis #108), which is another resource.

An action on an infusion is a MedicationAdministration: a bag, a change of the rate, a stop. Each leaves the fact
`infusion_action` about its order (`rules.administrations.infusion_action`); the last one ends when it starts, as an
administration without an end does. What an action's row says follows from the facts alone, so that it does not matter in
which order they came.
"""

from __future__ import annotations

from pipeline.publication.sql import Database

__all__ = ["end_infusions"]


def end_infusions(db: Database) -> None:
    """Set the end and quantity of what is given at a rate, and set them back when the next action goes. Runs after rows
    and facts of the export are there; adds to `affected_person`."""
    db.execute("infusion_orders")
    if db.value("any_infusion_order"):
        db.execute("infusion_actions")
        db.execute("end_infusions")
