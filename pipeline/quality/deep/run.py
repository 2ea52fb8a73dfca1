"""One deep verification: choose, load afresh, compare. The order of the other modules, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from pipeline.load.fingerprints import site_rules
from pipeline.load.load import LoadOptions, load
from pipeline.load.old_settings import SiteFingerprints
from pipeline.load.vocabulary_changes import compared_with_another
from pipeline.quality.deep.compare import compare
from pipeline.quality.deep.content import Side, make_content
from pipeline.quality.deep.lines import exports_of, sites_of
from pipeline.quality.deep.model import DeepProgress, DeepReport, DeepRequest
from pipeline.quality.deep.sample import choose
from pipeline.quality.deep.scratch import Scratch, scratch_warehouse
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.server_failures import server_errors

__all__ = ["verify_deep"]


def verify_deep(runtime: Runtime, request: DeepRequest, progress: DeepProgress | None = None) -> DeepReport:
    """Compare the warehouse with a fresh load of the current lines of the persons that are asked for.

    The warehouse is read in one snapshot and not changed; loads may continue meanwhile. Needs the right to create
    schemas, and disk for a second copy of what is compared. Raises SiteBusy while another deep verification runs,
    LandingError, WarehouseError, and whatever a load raises.
    """
    report_progress = progress or (lambda _stage, _done, _total: None)
    started = time.perf_counter()
    report = DeepReport()
    with server_errors(), scratch_warehouse(runtime) as scratch:
        _read(scratch, request, report, report_progress)
        with scratch.real.connect() as connection:
            for site in sites_of(scratch, connection, request.seed):
                _load(scratch, connection, site, request.seed, report_progress)
            report_progress("expected rows", 0, 0)
            make_content(connection, _side(scratch, request, "expected"), runtime.settings.vocab_schema)
            compare(scratch, connection, report, report_progress)
    report.seconds = time.perf_counter() - started
    return report


def _read(scratch: Scratch, request: DeepRequest, report: DeepReport, progress: DeepProgress) -> None:
    """All that is read of the warehouse, as it is at one moment."""
    fingerprints = _fingerprints(scratch.real)
    with _snapshot(scratch.real) as connection:
        choose(scratch, connection, request, fingerprints, report, progress)
        progress("rows as they are", 0, 0)
        make_content(connection, _side(scratch, request, "actual"), scratch.real.settings.vocab_schema)


def _fingerprints(runtime: Runtime) -> dict[str, SiteFingerprints]:
    """Of a site that was not compared with the active vocabulary, those of no state: nobody knows yet which of them are
    old."""
    found = {}
    with runtime.connect() as connection:
        sites = connection.execute("SELECT DISTINCT site FROM site_resource_type ORDER BY site").fetchall()
        for (site,) in sites:
            rules = site_rules(runtime, runtime.settings.site_or_folder(site))
            is_compared = compared_with_another(runtime, connection, site, rules) is None
            by_type = rules.fingerprints if is_compared else dict.fromkeys(rules.fingerprints, _OF_NO_STATE)
            found[site] = SiteFingerprints(by_type, frozenset(rules.mappings.resources))
    return found


#: A fingerprint that no settings have.
_OF_NO_STATE = 1


@contextmanager
def _snapshot(runtime: Runtime) -> Iterator[psycopg.Connection]:
    with runtime.connect() as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            yield connection


def _load(scratch: Scratch, connection: psycopg.Connection, site: str, seed: int, progress: DeepProgress) -> None:
    settings = scratch.runtime.settings.site_or_folder(site)
    options = LoadOptions(force=True, progress=lambda stage, done, total: progress(f"{stage} of {site}", done, total))
    for export in exports_of(scratch, connection, site, seed, progress):
        load(scratch.runtime, settings, export, options)
        connection.commit()


def _side(scratch: Scratch, request: DeepRequest, name: str) -> Side:
    settings = scratch.real.settings if name == "actual" else scratch.runtime.settings
    everything = request.persons is None and request.site is None
    return Side(name, settings.cdm_schema, settings.etl_schema, scratch.etl, everything, settings.cdm_version)
