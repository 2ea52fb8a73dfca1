"""A file that people bring back becomes local maps: what can be taken is, and each other line is refused with its reason.

All answers about one code are taken or refused together. Files are read in `files`; what the rows of `etl.local_map` are is
`pipeline.warehouse.local_map`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import psycopg
from psycopg import sql

from pipeline.core.settings_file import nearest
from pipeline.fhir.system_name import plain_name
from pipeline.quality.unmapped.codes import Decisions, SourceKey, SourceKeys
from pipeline.quality.unmapped.domains import ElementDomains
from pipeline.quality.unmapped.files import MapFile, MapLine, Refusal
from pipeline.quality.unmapped.nearest import KnownCodes
from pipeline.transform.concepts.code_sets import TEXT_VOCABULARY
from pipeline.transform.mapping.mappings import Mappings
from pipeline.warehouse.local_map.overlay import align_local_map
from pipeline.warehouse.local_map.rows import (
    Answer,
    LocalRow,
    MapSchemas,
    current_rows,
    lock_local_map,
    replace_answers,
)
from pipeline.warehouse.local_map.source_to_concept_map import short_vocabulary_id
from pipeline.warehouse.local_map.targets import Target, target_problem, targets_of

__all__ = ["ImportOptions", "ImportReport", "import_map"]


@dataclass(frozen=True)
class ImportOptions:
    """How lines are to be taken."""

    #: the site of lines that name none, and `for_all_sites`: of none whatever they name
    site: str | None = None
    for_all_sites: bool = False
    #: the code system of lines that name none
    system: str | None = None
    #: who approved lines that do not say so
    reviewer: str | None = None
    #: an approval may take the place of another one
    replace: bool = False
    #: codes that no resource has had yet are taken too
    unseen: bool = False
    #: say what would be done
    dry_run: bool = False
    #: of the file, for `origin`
    label: str = "import"
    #: names of sites that a line may have; None: any
    sites: Collection[str] | None = None


@dataclass(frozen=True)
class ImportReport:
    """What was done with a file's lines."""

    style: str
    #: sources by what is said of them now: approved, no map, unchecked, flagged, ignored
    taken: Counter[str]
    #: sources about which the file says what holds already
    unchanged: int
    #: lines that say nothing: nobody has chosen a concept yet
    empty: int
    refusals: tuple[Refusal, ...]
    #: sentences about source_to_concept_map
    notes: tuple[str, ...] = ()


@dataclass
class _Group:
    """The answers about one source of a site, with their lines."""

    lines: list[int] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class _Known:
    """What the warehouse has met, by key of the system; texts under `text`."""

    codes: dict[str, KnownCodes]
    systems: dict[str, str]
    places: dict[SourceKey, set[str]]


class _Refused(Exception):
    """Why a line or a source is not taken."""


def import_map(
    connection: psycopg.Connection, file: MapFile, options: ImportOptions, mappings: Mappings, schemas: MapSchemas
) -> ImportReport:
    """Take a file's lines into `etl.local_map`, in the caller's transaction. `connection` has the etl schema on its
    search_path."""
    lock_local_map(connection)
    keys = SourceKeys(mappings)
    rows = current_rows(connection, schemas)
    known = _known(connection, keys, rows)
    groups, refusals = _grouped(connection, file.lines, options, keys, known, rows, schemas)
    targets = targets_of(connection, schemas, (a.target_concept_id for g in groups.values() for a in g.answers))
    elements = ElementDomains(mappings)
    decided = Decisions.of(keys, (row.answer for row in rows))
    taken: Counter[str] = Counter()
    accepted: list[tuple[tuple[str | None, SourceKey], _Group]] = []
    unchanged = 0
    for place, group in groups.items():
        try:
            _check(group, targets, elements.of_places(known.places.get(place[1], ())))
            if _is_the_same(group.answers, decided.by_source.get(place, ())):
                unchanged += 1
                continue
            if not options.replace:
                _check_conflict(decided.by_source.get(place, ()))
        except _Refused as refused:
            refusals += [Refusal(line, _shown(group.answers[0]), str(refused)) for line in group.lines]
            continue
        accepted.append((place, group))
        taken[_said(group.answers)] += 1
    notes: tuple[str, ...] = ()
    if accepted and not options.dry_run:
        places = {place for place, _ in accepted}
        ended = [row for row in rows if (row.answer.site, keys.of_answer(row.answer)) in places]
        replace_answers(connection, schemas, ended, [answer for _, group in accepted for answer in group.answers])
        notes = align_local_map(connection, vocab_schema=schemas.vocab, etl_schema=schemas.etl).notes
    every = sorted([*file.refusals, *refusals], key=lambda refusal: refusal.line)
    return ImportReport(file.style, taken, unchanged, file.empty, tuple(every), notes)


# --- what the warehouse has met ---------------------------------------------------------------------------------------


def _known(connection: psycopg.Connection, keys: SourceKeys, rows: Iterable[LocalRow]) -> _Known:
    codes: dict[str, set[str]] = {}
    systems: dict[str, str] = {}
    places: dict[SourceKey, set[str]] = {}
    met = connection.execute(
        "SELECT DISTINCT system, code, CASE WHEN code IS NULL THEN coalesce(text, display) END,"
        " resource_type || '.' || element FROM unmapped_coding"
    )
    for system, code, text, place in met:
        if code is None and text is None:
            continue
        key = keys.of(system or "", code, text)
        codes.setdefault(key[0], set()).add(code if code is not None else key[1])
        systems.setdefault(key[0], TEXT_VOCABULARY if code is None else system or "")
        places.setdefault(key, set()).add(place)
    for row in rows:
        key = keys.of_answer(row.answer)
        codes.setdefault(key[0], set()).add(row.answer.source_code if row.answer.source_code is not None else key[1])
        systems.setdefault(key[0], row.answer.source_system)
    return _Known({system: KnownCodes.of(found) for system, found in codes.items()}, systems, places)


def _in_vocabulary(
    connection: psycopg.Connection, schemas: MapSchemas, keys: SourceKeys, pairs: set[tuple[str, str]]
) -> set[SourceKey]:
    """Which of these sources (system, code) the vocabulary knows; an answer may veto what it says."""
    asked = {(keys.vocabulary(system), keys.of(system, code, None)[1]) for system, code in pairs}
    if not asked:
        return set()
    query = sql.SQL(
        "SELECT DISTINCT vocabulary_id, concept_code FROM {} JOIN unnest(%s::text[], %s::text[]) AS asked (vocabulary, code)"
        " ON vocabulary_id = vocabulary AND concept_code = code"
    ).format(schemas.of_vocabulary("concept"))
    columns = [list(column) for column in zip(*sorted(asked), strict=True)]
    return {(plain_name(vocabulary), code) for vocabulary, code in connection.execute(query, columns)}


# --- lines to sources -------------------------------------------------------------------------------------------------


def _grouped(
    connection: psycopg.Connection,
    lines: Sequence[MapLine],
    options: ImportOptions,
    keys: SourceKeys,
    known: _Known,
    rows: Iterable[LocalRow],
    schemas: MapSchemas,
) -> tuple[dict[tuple[str | None, SourceKey], _Group], list[Refusal]]:
    short = {
        short_vocabulary_id(row.answer.site, row.answer.source_system): (row.answer.site, row.answer.source_system)
        for row in rows
    }
    refusals: list[Refusal] = []
    placed: list[tuple[MapLine, Answer]] = []
    for line in lines:
        try:
            placed.append((line, _answer(line, options, keys, known, short)))
        except _Refused as refused:
            refusals.append(Refusal(line.line, line.code, str(refused)))
    pairs = {(a.source_system, a.source_code) for _, a in placed if a.source_code is not None}
    in_vocabulary = _in_vocabulary(connection, schemas, keys, pairs)
    groups: dict[tuple[str | None, SourceKey], _Group] = {}
    for line, answer in placed:
        key = keys.of_answer(answer)
        try:
            if not options.unseen and key not in in_vocabulary:
                _check_met(answer, key, known)
        except _Refused as refused:
            refusals.append(Refusal(line.line, _shown(answer), str(refused)))
            continue
        group = groups.setdefault((answer.site, key), _Group())
        group.lines.append(line.line)
        if answer not in group.answers:
            group.answers.append(answer)
    return groups, refusals


def _answer(
    line: MapLine,
    options: ImportOptions,
    keys: SourceKeys,
    known: _Known,
    short: dict[str, tuple[str | None, str]],
) -> Answer:
    site, system = line.site, line.system
    if system in short:
        site, system = short[system]
    system = options.system if options.system is not None else system
    if system is None:
        system = _only_system(line, keys, known)
    site = None if options.for_all_sites else options.site or site
    if site and options.sites is not None and site not in options.sites:
        listed = ", ".join(sorted(options.sites)) or "none yet"
        raise _Refused(f"there is no site {site!r}.{nearest(site, options.sites)} Known sites: {listed}")
    is_text = system == TEXT_VOCABULARY
    return Answer(
        site,
        system,
        None if is_text else line.code,
        " ".join(line.code.split()) if is_text else None,
        line.target or 0,
        status=line.status,
        kind=line.kind,
        source_description=line.name,
        source_concept_id=line.source_concept_id,
        equivalence=line.equivalence,
        mapping_type=line.mapping_type,
        reviewer=line.reviewer or options.reviewer,
        reviewed_at=line.reviewed_at,
        comment=line.comment,
        origin=options.label,
    )


def _only_system(line: MapLine, keys: SourceKeys, known: _Known) -> str:
    """Of a file that names none: the only system that has the code."""
    having = [
        system
        for key, system in known.systems.items()
        if line.code in known.codes[key].codes
        or keys.of(system, line.code, line.code if key == TEXT_VOCABULARY else None)[1] in known.codes[key].codes
    ]
    if len(having) == 1:
        return having[0]
    if having:
        raise _Refused(f"several systems have this code ({', '.join(sorted(having))}): name one with --system")
    found_near = [
        (found, system) for key, system in known.systems.items() if (found := known.codes[key].nearest(line.code))
    ]
    if found_near:
        (code, why), system = found_near[0]
        raise _Refused(f"no known code is this; the nearest is {code} of {system or 'no system'} ({why})")
    raise _Refused("no known code is this, and the file names no system: name one with --system")


def _check_met(answer: Answer, key: SourceKey, known: _Known) -> None:
    if key in known.places:
        return
    of_system = known.codes.get(key[0])
    if of_system is None:
        raise _Refused(
            f"no resource has had a code of {answer.source_system or 'no system'}; --unseen takes it all the same"
        )
    if answer.source_code in of_system.codes or key[1] in of_system.codes:
        return
    found = None if answer.source_code is None else of_system.nearest(answer.source_code)
    near = f"; the nearest is {found[0]} ({found[1]})" if found else ""
    raise _Refused(f"no known code of {answer.source_system or 'no system'} is this{near}")


# --- sources that can be taken ----------------------------------------------------------------------------------------


def _check(group: _Group, targets: dict[int, Target], domains: frozenset[str] | None) -> None:
    """Raises _Refused for answers that contradict each other, and for targets that cannot be used."""
    approved = [answer for answer in group.answers if answer.status == "approved"]
    by_reviewer: dict[tuple[str | None, object], set[tuple[str, int]]] = {}
    for answer in approved:
        by_reviewer.setdefault((answer.reviewer, answer.reviewed_at), set()).add(
            (answer.kind, answer.target_concept_id)
        )
    if len({frozenset(chosen) for chosen in by_reviewer.values()}) > 1:
        said = "; ".join(
            f"{reviewer or 'nobody named'}: {_ids(chosen)}"
            for (reviewer, _), chosen in sorted(by_reviewer.items(), key=str)
        )
        raise _Refused(f"the file has conflicting approvals of it ({said}, lines {', '.join(map(str, group.lines))})")
    if len({answer.status for answer in group.answers}) > 1:
        raise _Refused(f"lines {', '.join(map(str, group.lines))} give it different statuses")
    chosen = {(answer.kind, answer.target_concept_id) for answer in approved}
    if ("to", 0) in chosen and len(chosen) > 1:
        raise _Refused("it is approved as having no map, and with a concept")
    kinds = Counter(kind for kind, _ in chosen)
    if kinds and not kinds["to"]:
        raise _Refused("it has a value or a unit, and no concept that they belong to (MAPS_TO)")
    if kinds["unit"] > 1:
        raise _Refused("it has several units")
    for answer in approved:
        _check_target(answer, targets, domains)


def _check_target(answer: Answer, targets: dict[int, Target], domains: frozenset[str] | None) -> None:
    problem = target_problem(targets, answer.target_concept_id)
    if problem:
        raise _Refused(problem)
    target = targets.get(answer.target_concept_id)
    if target is None:
        return
    if answer.kind == "unit" and target.domain_id != "Unit":
        raise _Refused(f"concept {target.concept_id} is of domain {target.domain_id}, and no unit")
    if answer.kind == "to" and domains is not None and domains.isdisjoint(target.domain_id.split("/")):
        raise _Refused(
            f"concept {target.concept_id} is of domain {target.domain_id}; where the code stands, only"
            f" {', '.join(sorted(domains))} can be used"
        )


def _check_conflict(current: Sequence[Answer]) -> None:
    """Raises _Refused where another approval is in force: no release has taken it away."""
    approved = [answer for answer in current if answer.status == "approved"]
    if not approved:
        return
    by = next((answer.reviewer for answer in approved if answer.reviewer), None)
    when = next((f"{answer.reviewed_at:%Y-%m-%d}" for answer in approved if answer.reviewed_at), None)
    origin = " ".join(filter(None, (f"by {by}" if by else None, f"on {when}" if when else None)))
    chosen = {(answer.kind, answer.chosen_concept_id) for answer in approved}
    raise _Refused(
        f"it is approved already{f' {origin}' if origin else ''}: {_ids(chosen)}; --replace takes this instead"
    )


def _is_the_same(answers: Sequence[Answer], current: Sequence[Answer]) -> bool:
    return {_compared(answer) for answer in answers} == {_compared(answer) for answer in current}


def _compared(answer: Answer) -> Answer:
    """What makes two answers two: not where they came from, nor what a release made of them."""
    status = "approved" if answer.status == "flagged" and answer.target_problem else answer.status
    plain = replace(
        answer, target_concept_id=answer.chosen_concept_id, approved_concept_id=None, origin="", status=status
    )
    return replace(
        plain, source_system="", source_code="", source_text=None, source_description=None, target_problem=None,
        source_concept_id=None,
    )  # fmt: skip


def _said(answers: Sequence[Answer]) -> str:
    return "no map" if any(answer.is_no_map for answer in answers) else answers[0].status


def _ids(chosen: Iterable[tuple[str, int]]) -> str:
    named = {"to": "", "value": "value ", "unit": "unit "}
    return ", ".join(f"{named[kind]}{concept_id or 'no map'}" for kind, concept_id in sorted(chosen))


def _shown(answer: Answer) -> str | None:
    return answer.source_code
