"""What a soak found: what grew, how long sites waited, whether lines have outcomes; in words and as a picture (SVG)."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np
import psycopg

from omop_schema.exports import ExportState
from pipeline.core.settings import Settings

__all__ = ["Findings", "Growth", "Sample", "judge", "plot"]

#: A first part of the time is not looked at: modules are imported, caches are filled.
_WARM_UP = 1 / 3
#: What grows by less over the rest is not called a leak: a share of where it began, and an amount.
_LEAST_SHARE = 0.10
_LEAST = {"RSS": 32 * 2**20, "descriptors": 8, "threads": 8, "connections": 8}
#: A group is starved that waits so many nights for its next publication, or so many times as long as most, and a night.
_NIGHTS = 3
_TIMES = 2.5


@dataclass(frozen=True)
class Sample:
    """`at` seconds after the begin. By service: bytes, numbers. Connections by application."""

    at: float
    load_average: float
    rss: Mapping[str, int]
    descriptors: Mapping[str, int]
    threads: Mapping[str, int]
    connections: Mapping[str, int]
    runs: int
    published: int
    open_exports: int


@dataclass(frozen=True)
class Growth:
    """A straight line through the samples after the warm-up: its value at the begin and at the end of them."""

    what: str
    service: str
    first: float
    last: float

    @property
    def is_leak(self) -> bool:
        grown = self.last - self.first
        return grown > _LEAST[self.what] and grown > _LEAST_SHARE * max(self.first, 1)

    def text(self) -> str:
        unit = 2**20 if self.what == "RSS" else 1
        measured = f"{self.first / unit:,.0f} → {self.last / unit:,.0f}{' MB' if unit > 1 else ''}"
        return f"{self.what} of {self.service}: {measured}"


@dataclass
class Findings:
    """`gaps`: by site and group, the longest time without a publication in seconds."""

    growths: list[Growth] = field(default_factory=list)
    publications: dict[str, int] = field(default_factory=dict)
    gaps: dict[str, float] = field(default_factory=dict)
    exports: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    lines: int = 0
    outcomes: int = 0
    verify: int = 0
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        counts, gaps = sorted(self.publications.values()), sorted(self.gaps.values())
        lines = [one.text() for one in self.growths]
        if counts:
            slowest = max(self.gaps, key=lambda name: self.gaps[name])
            lines.append(
                f"Publications of a group: {counts[0]} to {counts[-1]}; its longest wait: median"
                f" {statistics.median(gaps):,.0f} s, longest {gaps[-1]:,.0f} s ({slowest})."
            )
        lines.append(f"Exports: {self.exports}. Runs: {self.runs}.")
        lines.append(f"Lines {self.lines:,} = outcomes {self.outcomes:,}; `epic-omop verify` ended with {self.verify}.")
        return "\n".join([*lines, *(f"PROBLEM: {problem}" for problem in self.problems)])


def judge(samples: Sequence[Sample], url: str, settings: Settings, seconds: float, night_seconds: float) -> Findings:
    """`seconds`: how long nights were begun; `night_seconds`: how often."""
    findings = Findings(growths=_growths(samples, seconds))
    findings.problems += [f"it grows: {growth.text()}" for growth in findings.growths if growth.is_leak]
    with psycopg.connect(url) as connection:
        _waits(findings, connection, settings, seconds)
        _outcomes(findings, connection)
    usual = statistics.median(findings.gaps.values())
    longest = min(_NIGHTS * night_seconds, max(_TIMES * usual, night_seconds))
    findings.problems += [
        f"{name} was starved: {gap:,.0f} s without a publication, most of them {usual:,.0f} s"
        for name, gap in findings.gaps.items()
        if gap > longest
    ]
    verify = subprocess.run(
        [Path(sys.executable).with_name("epic-omop"), "verify"],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    findings.verify = verify.returncode
    if verify.returncode:
        findings.problems.append(f"verify: {verify.stdout[-500:]}")
    return findings


def _growths(samples: Sequence[Sample], seconds: float) -> list[Growth]:
    looked = [one for one in samples if _WARM_UP * seconds < one.at <= seconds]
    if len(looked) < 3:
        return []
    at = [one.at for one in looked]

    def growth(what: str, service: str, values: Sequence[float]) -> Growth:
        slope, start = np.polyfit(at, values, 1)
        return Growth(what, service, float(start + slope * at[0]), float(start + slope * at[-1]))

    found = []
    measures: dict[str, Callable[[Sample], Mapping[str, int]]] = {
        "RSS": lambda one: one.rss, "descriptors": lambda one: one.descriptors, "threads": lambda one: one.threads,
    }  # fmt: skip
    for what, of in measures.items():
        found += [growth(what, service, [of(one)[service] for one in looked]) for service in of(looked[0])]
    found.append(growth("connections", "all", [sum(one.connections.values()) for one in looked]))
    return found


def _waits(findings: Findings, connection: psycopg.Connection, settings: Settings, seconds: float) -> None:
    """From the begin of the first export of all: what is published after the time counts as well."""
    rows = connection.execute(
        "SELECT site, group_id, extract(epoch FROM published_at - (SELECT min(requested_at) FROM etl.export_job))"
        " FROM etl.export_job WHERE state = %s ORDER BY published_at",
        (ExportState.PUBLISHED,),
    ).fetchall()
    for site in settings.sites.values():
        for group in site.groups:
            name = f"{site.name}/{group}"
            times = [float(at) for known, of, at in rows if (known, of) == (site.name, group)]
            ends = [0.0, *times, max(seconds, *times)] if times else [0.0, seconds]
            findings.publications[name] = len(times)
            findings.gaps[name] = max(after - before for before, after in pairwise(ends))
            if not times:
                findings.problems.append(f"{name} was never published")


def _outcomes(findings: Findings, connection: psycopg.Connection) -> None:
    findings.exports = dict(connection.execute("SELECT state, count(*) FROM etl.export_job GROUP BY 1").fetchall())
    row = connection.execute(
        "SELECT coalesce(sum(lines), 0), coalesce(sum(loaded + unchanged + superseded + excluded + rejected), 0),"
        " count(*) FILTER (WHERE lines <> loaded + unchanged + superseded + excluded + rejected) FROM etl.file_account"
        " JOIN etl.export_job USING (export_id) WHERE state = %s",
        (ExportState.PUBLISHED,),
    ).fetchone()
    lines, outcomes, wrong = row or (0, 0, 0)
    findings.lines, findings.outcomes = int(lines), int(outcomes)
    if wrong or lines != outcomes:
        findings.problems.append(f"{wrong} files have lines without an outcome")
    if connection.execute("SELECT to_regclass('dagster.runs') IS NOT NULL").fetchone() == (True,):
        findings.runs = dict(
            connection.execute("SELECT pipeline_name_end || ' ' || status, count(*) FROM (SELECT status,"
                               " regexp_replace(pipeline_name, '^.*__', '') AS pipeline_name_end FROM dagster.runs) AS run"
                               " GROUP BY 1").fetchall()
        )  # fmt: skip


# --- the picture --------------------------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _LEFT, _TOP = 860, 150, 70, 28
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")


def plot(samples: Sequence[Sample], findings: Findings) -> str:
    """Small pictures below each other, one a measure, over minutes; SVG."""
    minutes = [one.at / 60 for one in samples]
    services = list(samples[0].rss)
    applications = sorted({name for one in samples for name in one.connections})
    panels: list[tuple[str, dict[str, list[float]]]] = [
        ("resident memory, MB", {name: [one.rss[name] / 2**20 for one in samples] for name in services}),
        ("open descriptors", {name: [one.descriptors[name] for one in samples] for name in services}),
        ("threads", {name: [one.threads[name] for one in samples] for name in services}),
        ("connections", {name: [one.connections.get(name, 0) for one in samples] for name in applications}),
        ("runs at work, open exports", {
            "runs": [one.runs for one in samples], "open exports": [one.open_exports for one in samples],
        }),
        ("published exports", {"published": [one.published for one in samples]}),
        ("load average of the machine", {"all who use it": [one.load_average for one in samples]}),
        ("longest wait of a site's groups, s", {}),
    ]  # fmt: skip
    height = len(panels) * (_HEIGHT + _TOP + 26) + 20
    size = f'width="{_WIDTH + _LEFT + 40}" height="{height}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="white"/>')
    for number, (title, curves) in enumerate(panels):
        top = number * (_HEIGHT + _TOP + 26) + _TOP
        if curves:
            parts.append(_panel(title, minutes, curves, top))
        else:
            parts.append(_bars(title, _by_site(findings.gaps), top))
    return "\n".join([*parts, "</svg>\n"])


def _by_site(gaps: Mapping[str, float]) -> dict[str, float]:
    sites: dict[str, float] = {}
    for name, gap in gaps.items():
        site = name.partition("/")[0]
        sites[site] = max(gap, sites.get(site, 0.0))
    return sites


def _frame(title: str, most: float, top: float) -> list[str]:
    parts = [f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{escape(title)}</text>']
    for share in (0, 0.5, 1):
        y = top + _HEIGHT * (1 - share)
        parts.append(f'<line x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{most * share:,.0f}</text>')
    return parts


def _panel(title: str, minutes: Sequence[float], curves: Mapping[str, Sequence[float]], top: float) -> str:
    most = max((max(values) for values in curves.values()), default=1) or 1
    end = minutes[-1] or 1
    parts = _frame(title, most, top)
    for step in range(0, int(end) + 1, max(1, int(end) // 10)):
        x = _LEFT + _WIDTH * step / end
        parts.append(f'<text x="{x:.1f}" y="{top + _HEIGHT + 15}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH + 4}" y="{top + _HEIGHT + 15}">m</text>')
    for number, (name, values) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(
            f"{_LEFT + _WIDTH * at / end:.1f},{top + _HEIGHT * (1 - value / most):.1f}"
            for at, value in zip(minutes, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{_LEFT + 260 + number * 125}" y="{top - 8}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(parts)


def _bars(title: str, values: Mapping[str, float], top: float) -> str:
    most = max(values.values(), default=1) or 1
    parts, width = _frame(title, most, top), _WIDTH / max(len(values), 1)
    for number, (name, value) in enumerate(values.items()):
        height, x = _HEIGHT * value / most, _LEFT + number * width
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{top + _HEIGHT - height:.1f}" width="{width - 6:.1f}" height="{height:.1f}"'
            f' fill="{_COLOURS[0]}"/><text x="{x + width / 2:.1f}" y="{top + _HEIGHT + 15}" text-anchor="middle"'
            f' font-size="10">{escape(name.removeprefix("site_"))}</text>'
        )
    return "\n".join(parts)
