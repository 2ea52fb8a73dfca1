"""All rules but those about a site's own past (`history`): accounts of landed files, records of medications, lineage."""

from __future__ import annotations

from functools import cache

from omop_schema.cdm import primary_key
from omop_schema.etl import LINEAGE_TABLES, lineage_table_name
from omop_schema.exports import ExportState
from pipeline.publication.accounting import ACCOUNTING_RULE
from pipeline.publication.double_counting import COUNTED_ELSEWHERE
from pipeline.quality.checks.model import Rule

__all__ = ["account_rules", "all_rules", "rules_of_table"]

#: Site of a row of lineage, for those few rows that a rule has found.
_SITE = (
    "LEFT JOIN resource_state AS state USING (surrogate_id)"
    " LEFT JOIN site_resource_type AS kind USING (site_resource_type_id)"
)


def all_rules() -> tuple[Rule, ...]:
    """Accounts first, then the tables in their order."""
    return (*account_rules(), *(rule for table in LINEAGE_TABLES for rule in rules_of_table(table)))


@cache
def account_rules() -> tuple[Rule, ...]:
    return (
        Rule(
            "accounting",
            f"every file: {ACCOUNTING_RULE}",
            f"SELECT site, count(*) FROM file_account WHERE ({ACCOUNTING_RULE}) IS NOT TRUE GROUP BY site",
        ),
        Rule(
            "accounts_exist",
            "every file of a published export has its account",
            "SELECT job.site, count(*) FROM export_file AS file JOIN export_job AS job USING (export_id)"
            f" WHERE job.state = '{ExportState.PUBLISHED}' AND file.loaded IS NULL GROUP BY job.site",
        ),
        Rule(
            "exclusions_have_reasons",
            "every excluded line has its reason",
            "SELECT files.site, count(*) FROM (SELECT export_id, min(site) AS site, sum(excluded) AS lines FROM file_account"
            " GROUP BY export_id) AS files LEFT JOIN (SELECT export_id, sum(count) AS lines FROM exclusion"
            " GROUP BY export_id) AS reasons USING (export_id) WHERE files.lines <> coalesce(reasons.lines, 0)"
            " GROUP BY files.site",
        ),
        Rule(
            "rejections_have_dead_letters",
            "every rejected line of the latest exports has its dead letter",
            "SELECT job.site, count(*) FROM export_file AS file JOIN export_job AS job USING (export_id)"
            " WHERE file.rejected > 0 AND NOT EXISTS (SELECT FROM dead_letter AS letter"
            " WHERE letter.export_id >= file.export_id) GROUP BY job.site",
        ),
        *_medication_rules(),
    )


def _medication_rules() -> tuple[Rule, ...]:
    row = "SELECT FROM {} AS lineage WHERE lineage.surrogate_id = record.surrogate_id"
    rows = " ".join(f"WHEN '{table}' THEN EXISTS ({row.format(lineage_table_name(table))})" for table in LINEAGE_TABLES)
    return (
        Rule(
            "orders_count_once",
            "records of one order count once",
            "SELECT kind.site, count(*) FROM medication_record AS one JOIN medication_record AS other"
            f" USING (link, linked_surrogate_id, cdm_table) {_SITE.replace('USING (surrogate_id)', _OF_ONE)}"
            " WHERE link = 'order' AND one.precedence < other.precedence AND one.counts AND other.counts GROUP BY kind.site",
        ),
        Rule(
            "records_have_rows",
            "records of medications: what counts has its row, and what is counted elsewhere has none",
            f"SELECT kind.site, count(*) FROM medication_record AS record {_SITE} WHERE counts IS DISTINCT FROM"
            f" CASE cdm_table {rows} END"
            " AND NOT EXISTS (SELECT FROM reference WHERE from_surrogate_id = record.surrogate_id"  # is to be mapped again
            f" AND role = '{COUNTED_ELSEWHERE}' AND reference.state = 'stale') GROUP BY kind.site",
        ),
    )


_OF_ONE = "ON state.surrogate_id = one.surrogate_id"


@cache
def rules_of_table(table: str) -> tuple[Rule, ...]:
    """Of a table with lineage."""
    own, lineage = primary_key(table) or "person_id", lineage_table_name(table)
    return (
        Rule(
            "rows_have_sources",
            "every row has its source",
            f"SELECT NULL::text, count(*) FROM {{cdm}}.{table} AS row"
            f" WHERE NOT EXISTS (SELECT FROM {lineage} AS lineage WHERE lineage.row_id = row.{own}) HAVING count(*) > 0",
            table,
        ),
        Rule(
            "sources_have_rows",
            "every source has its row, and a loaded resource",
            f"SELECT kind.site, count(*) FROM {lineage} AS lineage LEFT JOIN {{cdm}}.{table} AS row"
            f" ON row.{own} = lineage.row_id {_SITE}"
            f" WHERE row.{own} IS NULL OR state.outcome IS DISTINCT FROM 'loaded' GROUP BY kind.site",
            table,
        ),
        Rule(
            "rows_are_there_once",
            "no resource has the same row twice",
            "SELECT kind.site, sum(again.problems) FROM (SELECT surrogate_id, count(*) - 1 AS problems"
            f" FROM {lineage} GROUP BY surrogate_id, row_key HAVING count(*) > 1) AS again {_SITE} GROUP BY kind.site",
            table,
        ),
    )
