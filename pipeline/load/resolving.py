"""Codes that neither the local map nor the vocabulary knows are asked of a site's resolvers, each once.

Which codes they are is known when lines were looked up: `etl.unmapped_code` has them. What is answered is laid over the
vocabulary by the next load (`pipeline.load.fingerprints.site_rules`), and the lines that hold such a code are mapped again
by a remap. No load waits for a service: one that does not answer is asked again later.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import polars as pl
import xxhash

from pipeline.core.errors import EpicOmopError, SiteBusy
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.core.settings import SiteSettings
from pipeline.extract.terminology.asking import ask_all
from pipeline.extract.terminology.fhir_server import FhirServer
from pipeline.extract.terminology.omophub import OmopHub
from pipeline.extract.terminology.service import Replies, Service, ServiceConnection, open_connection
from pipeline.fhir.system_name import plain_name
from pipeline.load.fingerprints import SiteRules, site_rules
from pipeline.load.remap import RemapReport, remap
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.concepts.local_rows import decided_sources
from pipeline.warehouse.resolver_cache import (
    AnswerCache,
    AskedCode,
    RemappedAnswers,
    ResolverAnswer,
    cached_answers,
    sent_systems,
)
from pipeline.warehouse.runtime import Runtime

__all__ = ["NightResolution", "ResolveProgress", "ResolverReport", "resolve_and_remap", "resolve_codes"]

_log = logging.getLogger(__name__)

_KEPT_TOGETHER = 1000

#: (resolver, codes done, codes in all).
ResolveProgress = Callable[[str, int, int], None]


@dataclass
class ResolverReport:
    """What one resolver was asked and said; numbers of codes."""

    resolver: str
    base_url: str
    #: not asked now: the answer is kept
    known: int = 0
    #: to be asked
    due: int = 0
    exact: int = 0
    #: of the exact ones: the active release holds none of their concepts as a valid Standard one, so nothing is mapped
    not_standard: int = 0
    suggestions: int = 0
    unknown: int = 0
    #: asked again by a later run
    unanswered: int = 0
    problem: str | None = None


@dataclass
class NightResolution:
    """What resolvers did for a site in one run."""

    reports: list[ResolverReport] = field(default_factory=list)
    #: None: it was mapped by all answers, or another remap of the site runs
    remapped: RemapReport | None = None

    def sentences(self) -> list[str]:
        """What people should know: what could not be asked."""
        return [
            f"Resolver {report.resolver} at {report.base_url}: {report.unanswered:,} codes have no answer yet, and are"
            f" asked again by a later run. {report.problem}"
            for report in self.reports
            if report.problem
        ]


def resolve_codes(
    runtime: Runtime,
    site: SiteSettings,
    *,
    dry_run: bool = False,
    despite_pause: bool = False,
    progress: ResolveProgress | None = None,
) -> list[ResolverReport]:
    """Ask a site's resolvers, in their order, about its unknown codes, and keep what they say.

    A code is asked of a resolver where no earlier one has a concept for it that can be used, once for each vocabulary
    release; again when its "unknown" has expired. `dry_run` sends nothing. Raises VocabularyError without a vocabulary, and
    LandingError when the disk refuses; what services do wrong is in the reports.
    """
    if not site.resolvers:
        return []
    rules = site_rules(runtime, site)
    index = rules.index
    caches = [AnswerCache(runtime.settings.home, resolver, index.content_hash) for resolver in site.resolvers]
    codes = _without_answered(rules, _unknown_codes(runtime, site, caches))
    reports = []
    for resolver, cache in zip(site.resolvers, caches, strict=True):
        asking = _Asking(runtime, site, resolver, cache, _Standard(index), progress)
        may_be_sent = sent_systems(resolver, {code.system for code in codes}, rules.mappings.systems.canonical)
        allowed = [code for code in codes if code.system in may_be_sent]
        reports.append(asking.run(allowed, dry_run=dry_run, despite_pause=despite_pause))
        usable = asking.usable()
        codes = [code for code in codes if code.key not in usable]
    return reports


def resolve_and_remap(runtime: Runtime, site: SiteSettings) -> NightResolution:
    """What a night does after its loads: ask, and map what holds a code with a new answer. Raises what `remap` raises."""
    found = NightResolution()
    if not site.resolvers:
        return found
    found.reports = resolve_codes(runtime, site)
    for sentence in found.sentences():
        _log.warning("%s", sentence)
    rules, home = site_rules(runtime, site), runtime.settings.home
    answers = cached_answers(home, site.resolvers, rules.index.content_hash, rules.mappings.systems.canonical)
    mapped = RemappedAnswers(home, site.name)
    if mapped.lack_any_of(answers):
        try:
            found.remapped = remap(runtime, site)
            mapped.put(answers)
        except SiteBusy as busy:
            _log.warning("Newly resolved codes are mapped by a later run. %s", busy.message)
    return found


def _unknown_codes(runtime: Runtime, site: SiteSettings, caches: Iterable[AnswerCache]) -> list[AskedCode]:
    """Those of the site's rows, and those that only an answer under another release gave a concept."""
    with runtime.connect() as connection:
        rows = connection.execute(
            "SELECT system, code, max(display) FROM unmapped_code WHERE site = %s AND system <> '' AND code <> ''"
            " GROUP BY 1, 2 ORDER BY 1, 2",
            (site.name,),
        ).fetchall()
    codes = {(system, code): AskedCode(system, code, display) for system, code, display in rows}
    for cache in caches:
        for former in cache.former():
            codes.setdefault(former.key, former)
    return [codes[key] for key in sorted(codes)]


def _without_answered(rules: SiteRules, codes: Sequence[AskedCode]) -> list[AskedCode]:
    """Those of which neither people nor the release say anything: rows may be older than what these say now."""
    mappings = rules.mappings
    names: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for code in codes:
        canonical = mappings.systems.canonical(code.system)
        vocabulary = mappings.code_systems.get(canonical, canonical)
        attempts = mappings.code_forms.attempts(vocabulary, code.code)
        names[code.key] = [(vocabulary, spelling) for attempt in attempts for spelling in attempt]
    schema = {"vocabulary_id": pl.String, "concept_code": pl.String}
    asked = pl.DataFrame(sorted({name for of in names.values() for name in of}), schema=schema, orient="row")
    found = rules.index.with_local(None, "").lookup(asked).drop_nulls("target_concept_id")
    answered = set(found.select(list(schema)).iter_rows())
    decided = decided_sources(rules.index.local) if rules.index.local else set()
    return [
        code
        for code in codes
        if not answered.intersection(names[code.key])
        and not decided.intersection((plain_name(vocabulary), spelling) for vocabulary, spelling in names[code.key])
    ]


@dataclass(frozen=True)
class _Standard:
    index: ConceptIndex

    def __call__(self, concept_ids: Iterable[int]) -> set[int]:
        """Of these those that are valid Standard concepts of the active release."""
        return {
            row["concept_id"]
            for row in self.index.concepts(sorted(set(concept_ids))).to_dicts()
            if row["standard_concept"] == "S" and row["invalid_reason"] is None
        }


@dataclass
class _Asking:
    """One resolver and what it is asked."""

    runtime: Runtime
    site: SiteSettings
    resolver: ResolverSettings
    cache: AnswerCache
    standard: _Standard
    progress: ResolveProgress | None

    def usable(self) -> set[tuple[str, str]]:
        """The codes that are mapped by what the resolver said."""
        exact = [answer for answer in self._known().values() if answer.status == "exact"]
        standard = self.standard(target for answer in exact for target, _ in answer.targets)
        return {answer.key for answer in exact if {target for target, _ in answer.targets} & standard}

    def run(self, allowed: Sequence[AskedCode], *, dry_run: bool, despite_pause: bool) -> ResolverReport:
        """`allowed`: codes that this resolver may be asked about."""
        report = ResolverReport(self.resolver.kind, self.resolver.base_url)
        due = self._in_turn(self._due(allowed))
        report.due, report.known = len(due), len(allowed) - len(due)
        pause = self.cache.pause
        if due and not dry_run:
            if pause is not None and pause.until > self.runtime.clock.now() and not despite_pause:
                report.problem = f"It is left alone until {pause.until:%Y-%m-%d %H:%M} UTC: {pause.problem}"
            else:
                release = self.cache.release
                self._ask(due, report)
                # Another release of the service: what it said under the former one counts no longer.
                if not report.problem and release not in ("", self.cache.release):
                    self._ask(self._due(allowed), report)
        self._count(allowed, report)
        return report

    def _due(self, codes: Sequence[AskedCode]) -> list[AskedCode]:
        known = self._known()
        return [code for code in codes if code.key not in known]

    def _in_turn(self, codes: Iterable[AskedCode]) -> list[AskedCode]:
        """In another order each day, so that codes at which a service fails stand in the way of the same others only once."""
        day = f"{self.runtime.clock.now():%Y-%m-%d}"
        return sorted(codes, key=lambda code: xxhash.xxh64_intdigest("\0".join((day, *code.key)).encode()))

    def _known(self) -> dict[tuple[str, str], ResolverAnswer]:
        return self.cache.known(self.runtime.clock.now())

    def _ask(self, codes: Sequence[AskedCode], report: ResolverReport) -> None:
        clock = self.runtime.clock
        keeper = _Keeper(self, len(codes))
        try:
            with open_connection(self.site, self.resolver, clock) as connection:
                asked = ask_all(self._service(connection), codes, self.resolver, clock, keeper.take)
        except EpicOmopError as error:  # its key, or its certificates
            report.problem = f"{error.message} {error.advice}".strip()
            return
        finally:
            keeper.keep()
        report.problem = asked.problem
        self.cache.set_pause(asked.pause)

    def _service(self, connection: ServiceConnection) -> Service:
        if self.resolver.kind == "omophub":
            return OmopHub(connection)
        return FhirServer(connection, self.standard)

    def _count(self, codes: Sequence[AskedCode], report: ResolverReport) -> None:
        known, usable = self._known(), self.usable()
        answers = [known[code.key] for code in codes if code.key in known]
        report.unanswered = len(codes) - len(answers)
        report.exact = sum(answer.status == "exact" for answer in answers)
        report.not_standard = sum(answer.status == "exact" and answer.key not in usable for answer in answers)
        report.suggestions = sum(answer.status == "suggestion" for answer in answers)
        report.unknown = sum(answer.status == "none" for answer in answers)


@dataclass
class _Keeper:
    """Answers on their way to the cache, which is written whole: many at a time, and what there is when asking ends."""

    asking: _Asking
    total: int
    done: int = 0
    _by_release: dict[str, list[ResolverAnswer]] = field(default_factory=lambda: defaultdict(list))
    _waiting: int = 0

    def take(self, replies: Replies) -> None:
        self._by_release[replies.release] += replies.answers
        self._waiting += len(replies.answers)
        self.done += len(replies.answers)
        if self._waiting >= _KEPT_TOGETHER:
            self.keep()
        if self.asking.progress:
            self.asking.progress(self.asking.resolver.kind, self.done, self.total)

    def keep(self) -> None:
        now = self.asking.runtime.clock.now()
        expires = now + timedelta(days=self.asking.resolver.unknown_again_days)
        for release, answers in self._by_release.items():
            self.asking.cache.put(answers, release, now, expires)
        self._by_release.clear()
        self._waiting = 0
