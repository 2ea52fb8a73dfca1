"""Devices with a row of their own (option `device_alone`): one that a use or a procedure names is counted there.

Fact: `device_counted` about the device, left by a DeviceUseStatement or a Procedure. When it comes or goes, the device is
mapped again (`dependents`): its row is made, and here it is taken out where another row counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from omop_schema.etl import LINEAGE_TABLES
from pipeline.core.settings import SiteSettings
from pipeline.publication.ids import ENTITY_TABLES
from pipeline.publication.sql import Database
from pipeline.publication.tables import table_names
from pipeline.publication.values import RowCounts

__all__ = ["count_once"]


def count_once(db: Database, site: SiteSettings, written: Iterable[str]) -> RowCounts:
    """Take out rows of devices that another resource's row counts. `written`: the tables with rows of this export."""
    if site.mapping.device_alone != "manufacture_date" or not db.execute("counted_devices"):
        return RowCounts()
    deleted: Counter[str] = Counter()
    for table in written:
        if table in LINEAGE_TABLES and table not in ENTITY_TABLES:
            deleted[table] = db.execute("remove_counted_rows", **table_names(table))
            db.execute("remove_counted_lineage", **table_names(table))
    return RowCounts(deleted=deleted)
