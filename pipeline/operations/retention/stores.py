"""Items that have rules of their own elsewhere: landing, the lakehouse, vocabulary releases."""

from __future__ import annotations

from pipeline.core.errors import SiteBusy, TransientError
from pipeline.core.retention_settings import number_of
from pipeline.lakehouse.store import lakehouse_folder
from pipeline.load.pruning import prune
from pipeline.operations.retention.items import ItemReport, ItemWork, RetentionItem
from pipeline.warehouse.export_jobs import sites_with_exports
from pipeline.warehouse.vocabulary.releases import ReleaseSchemas
from pipeline.warehouse.vocabulary.using import prune_vocabulary

__all__ = ["STORE_ITEMS"]


def _landing(work: ItemWork, report: ItemReport) -> None:
    """Each site by its `landing_keep`, as `epic-omop landing prune` does."""
    runtime = work.runtime
    with runtime.connect() as connection:
        names = sorted({*runtime.settings.sites, *sites_with_exports(connection)})
    for name in names:
        site = runtime.settings.site_or_folder(name)
        try:
            found = prune(runtime, site, dry_run=work.is_dry)
        except SiteBusy:
            report.keep(len(runtime.landing.numbers(name)), f"site {name} is being loaded")
            continue
        if work.is_dry:
            work.pruned[name] = frozenset(export.export_id for export in found if not export.problem)
        problems = [export for export in found if export.problem]
        lines = sum(export.lines_moved for export in found)
        report.keep(len(problems), f"site {name}: {problems[0].problem}" if problems else "")
        report.keep(lines, f"lines of site {name}: current resources and open dead letters have them")
        whole = set(runtime.landing.numbers(name)) - {export.export_id for export in found}
        report.keep(len(whole), f"site {name} keeps {site.landing_keep}, and what is mostly needed")
        for export in found:
            if not export.problem:
                after = export.bytes_after
                report.remove(1, None if after is None else max(0, export.bytes_before - after))


def _lakehouse(work: ItemWork, report: ItemReport) -> None:
    place, number = work.runtime.settings.lakehouse, number_of(work.settings.lakehouse_snapshots)
    if not place:
        return
    lakehouse = lakehouse_folder(place)
    snapshots = lakehouse.snapshots()
    if number is None or not lakehouse.folder.is_dir():
        report.keep(len(snapshots), "the setting keeps them")
        return
    unwanted = max(0, len(snapshots) - number)
    if work.is_dry or not unwanted:
        report.remove(unwanted)
    else:
        try:
            with lakehouse.writing():
                report.remove(lakehouse.prune(number - 1))
        except TransientError as error:
            report.keep(unwanted, error.message)
    report.keep(len(snapshots) - report.removed, "the setting keeps them")


def _vocabulary_releases(work: ItemWork, report: ItemReport) -> None:
    """The active release stays always; rows and remaps need no other one."""
    settings, number = work.runtime.settings, number_of(work.settings.vocabulary_releases)
    schemas = ReleaseSchemas(settings.vocab_schema, settings.etl_schema)
    with work.runtime.connect() as connection:
        releases = [one for one in schemas.all(connection) if one.state == "ready"]
    if number is None:
        report.keep(len(releases), "the setting keeps them")
        return
    if work.is_dry:
        others = [one for one in releases if not one.is_current]
        stay = [one for one in others if one.active_since is not None][: number - 1]
        report.remove(len(others) - len(stay))
        report.keep(len(releases) - report.removed, "active now, or the last before")
        return
    gone, problems = prune_vocabulary(
        work.runtime.url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, keep=number
    )
    report.remove(len([one for one in gone if one in releases]))
    report.keep(len(releases) - report.removed - len(problems), "active now, or the last before")
    for sentence in problems:
        report.keep(1, sentence)


STORE_ITEMS = (
    RetentionItem("landing", "exports", _landing, setting="landing_keep of each site"),
    RetentionItem("lakehouse_snapshots", "snapshots", _lakehouse),
    RetentionItem("vocabulary_releases", "releases", _vocabulary_releases),
)
