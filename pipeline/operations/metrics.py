"""Metrics of an instance in OpenMetrics: sites, exports, alerts, disks. Names of sites are labels; nothing of patients is in
them. The endpoint and the file are in `pipeline/commands/metrics.py`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector

from pipeline.core.settings import Settings
from pipeline.operations.alerts.kinds import Condition
from pipeline.operations.site_status import SiteStatus

__all__ = ["Measured", "exposition", "instance_metrics"]


@dataclass(frozen=True)
class Measured:
    """What was looked at. `daemon` is None where there is no Dagster in this home. `is_up`: whether the warehouse answers;
    where it does not, nothing is known of sites and alerts."""

    settings: Settings
    at: datetime
    is_up: bool
    daemon: bool | None = None
    sites: Sequence[SiteStatus] = ()
    conditions: Sequence[Condition] = ()
    landing_bytes: int | None = None


def exposition(measured: Measured) -> bytes:
    """The text of OpenMetrics, with gauges alone: what reads Prometheus' own text, such as node_exporter, takes it too."""
    registry = CollectorRegistry()
    registry.register(_Collector(list(instance_metrics(measured))))
    content: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return content


def instance_metrics(measured: Measured) -> Iterator[Metric]:
    """All of them; base units (seconds, bytes), times as seconds since 1970."""
    yield _gauge("epic_omop_up", "Whether the warehouse answered (1) or not (0).", measured.is_up)
    yield _gauge("epic_omop_measured_timestamp_seconds", "When this was measured.", measured.at.timestamp(), "seconds")
    if measured.daemon is not None:
        yield _gauge("epic_omop_daemon_up", "Whether Dagster's daemon reported lately.", measured.daemon)
    yield from _disks(measured.settings)
    if measured.landing_bytes is not None:
        yield _gauge(
            "epic_omop_landing_bytes", "What landed exports take on the disk.", measured.landing_bytes, "bytes"
        )
    if measured.is_up:
        yield _alerts(measured.conditions)
        yield from _sites(measured.sites)


class _Collector(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _gauge(name: str, text: str, value: float, unit: str = "") -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value), unit=unit)


def _of_sites(name: str, text: str, values: Iterable[tuple[str, float | None]], unit: str = "") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=("site",), unit=unit)
    for site, value in values:
        if value is not None:
            family.add_metric((site,), value)
    return family


def _sites(sites: Sequence[SiteStatus]) -> Iterator[Metric]:
    yield _of_sites(
        "epic_omop_site_last_publication_timestamp_seconds",
        "When an export of the site was published last.",
        ((site.site, _seconds(site.last_published)) for site in sites),
        "seconds",
    )
    yield _of_sites(
        "epic_omop_site_next_run_timestamp_seconds",
        "When the site's schedule is due next; absent where it is off.",
        ((site.site, _seconds(site.runs.next_run) if site.runs else None) for site in sites),
        "seconds",
    )
    yield _of_sites(
        "epic_omop_site_last_run_success",
        "Whether the run of Dagster that ended last succeeded (1) or not (0).",
        ((site.site, _succeeded(site)) for site in sites),
    )
    counts: dict[str, tuple[str, Callable[[SiteStatus], float | None]]] = {
        "open_exports": ("Exports that are not loaded yet.", lambda site: len(site.running)),
        "failed_exports": ("Groups whose last export failed.", lambda site: len(site.failed)),
        "waiting_groups": ("Groups whose kick-off waits.", lambda site: len({one.group for one in site.waiting})),
        "open_dead_letters": ("Lines that could not be loaded.", lambda site: site.open_dead_letters),
        "requests_this_hour": ("Requests sent to the site since the hour began.", lambda site: site.requests.this_hour),
        "request_budget": ("The site's requests an hour; absent where it has none.", lambda site: site.requests.budget),
    }
    for name, (text, value) in counts.items():
        yield _of_sites(f"epic_omop_site_{name}", text, [(site.site, value(site)) for site in sites])


def _succeeded(site: SiteStatus) -> float | None:
    return float(site.runs.last.status == "SUCCESS") if site.runs and site.runs.last else None


def _seconds(time: datetime | None) -> float | None:
    return time.timestamp() if time else None


def _alerts(conditions: Sequence[Condition]) -> Metric:
    family = GaugeMetricFamily(
        "epic_omop_problems", "What is wrong at present (docs/alerts.md).", labels=("site", "kind", "severity")
    )
    counted = Counter((one.site or "", one.kind.value, one.severity) for one in conditions)
    for labels, count in sorted(counted.items()):
        family.add_metric(labels, count)
    return family


def _disks(settings: Settings) -> Iterator[Metric]:
    """Of each folder of ours that is there, whatever file system it is on."""
    folders = {"home": settings.home, "landing": settings.landing, "staging": settings.staging}
    if settings.lakehouse:
        folders["lakehouse"] = Path(settings.lakehouse)
    free = GaugeMetricFamily(
        "epic_omop_disk_free_bytes", "Free space of the file system.", labels=("folder",), unit="bytes"
    )
    total = GaugeMetricFamily("epic_omop_disk_size_bytes", "Size of the file system.", labels=("folder",), unit="bytes")
    for name, folder in folders.items():
        try:
            usage = shutil.disk_usage(folder)
        except OSError:  # not there yet
            continue
        free.add_metric((name,), usage.free)
        total.add_metric((name,), usage.total)
    yield free
    yield total
