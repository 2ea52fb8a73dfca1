"""Lines of dead letters that a person repaired: which are sent through again, and what became of each letter.

A repaired line is landed as a replay, as of the time of the export that brought the broken one. Its letter is closed in
the publication that accepts it (`pipeline.publication.dead_letters`); one that is rejected as well stays open, with its
new line and reason. Nothing of a line is in a reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
import psycopg
from psycopg.rows import class_row

from pipeline.core.settings import SiteSettings
from pipeline.fhir.identity import SurrogateKeys
from pipeline.load.follow_ups import ReplayLine, land_replays, site_work
from pipeline.load.load import REPLAYED, load_in_turn
from pipeline.load.repair_file import RepairedLine
from pipeline.publication import dead_letters
from pipeline.warehouse.configured_sites import refuse_missing_site
from pipeline.warehouse.runtime import Runtime

__all__ = ["RepairOutcome", "repair"]


@dataclass(frozen=True)
class RepairOutcome:
    """What became of a line. `outcome`: `loaded`, `excluded` (by a rule or setting), `open` (rejected again, for `reason`), or
    `refused` (not sent, for `reason`). `letter`: None of a line that belongs to no letter. `place`: its line in the file."""

    place: int
    letter: int | None
    outcome: Literal["loaded", "excluded", "open", "refused"]
    code: str | None = None
    path: str | None = None
    reason: str = ""


@dataclass(frozen=True)
class _Letter:
    """What a letter is before its repair."""

    id: int
    site: str
    resource_type: str
    resource_id: str | None
    state: str
    closed_at: datetime | None
    closed_by_export_id: int | None
    as_of: datetime
    raw: bytes
    follower: int | None


_LETTERS = (
    "SELECT letter.id, letter.site, letter.resource_type, letter.resource_id, letter.state, letter.closed_at,"
    " letter.closed_by_export_id, job.transaction_time AS as_of, letter.raw,"
    " (SELECT min(other.id) FROM dead_letter AS other WHERE other.surrogate_id = letter.surrogate_id"
    "    AND other.state = 'open' AND other.id <> letter.id) AS follower"
    " FROM dead_letter AS letter JOIN export_job AS job USING (export_id) WHERE letter.id = ANY(%s)"
)


def repair(runtime: Runtime, lines: Sequence[RepairedLine]) -> Iterator[RepairOutcome]:
    """Send repaired lines through the pipeline, site by site; yields one outcome a line. A site's are loaded when its first is
    given: stop, and the other sites' letters stay as they are.

    Raises what `load` raises: SiteBusy while the site is loaded; nothing of that site is changed then.
    """
    with runtime.connect() as connection:
        named = [_named(connection, line) for line in lines]
        letters = _letters(connection, {line.letter for line in named if line.letter is not None})
    by_site: dict[str, list[RepairedLine]] = defaultdict(list)
    seen = Counter(line.letter for line in named)
    for line in named:
        letter = letters.get(line.letter or 0)
        if letter is None:
            yield _refused(line, _NO_LETTER if line.letter is None else f"there is no dead letter {line.letter}")
        elif seen[letter.id] > 1:
            yield _refused(line, "the file has more than one line for this letter: leave the right one")
        else:
            by_site[letter.site].append(line)
    for site, own in sorted(by_site.items()):
        yield from _repair_site(runtime, runtime.settings.site_or_folder(site), own)


_NO_LETTER = "no single open letter is of this resource: write `# letter ID` above the line"


def _repair_site(runtime: Runtime, site: SiteSettings, lines: Sequence[RepairedLine]) -> Iterator[RepairOutcome]:
    with site_work(runtime, site):  # what is refused is decided under the lock: no load changes it meanwhile
        ids = [line.letter for line in lines if line.letter is not None]
        with runtime.connect() as connection:
            refuse_missing_site(connection, runtime.settings, site.name)
            letters = _letters(connection, ids)
            before = dead_letters.open_lines(connection, site=site.name, ids=ids)
            newer = _newer_exports(connection, _keys(runtime, site, lines), letters)
        sent: list[tuple[RepairedLine, ReplayLine]] = []
        for line in lines:
            letter = letters[line.letter or 0]
            if (reason := _why_refused(letter, line.raw, newer.get(letter.id))) is not None:
                yield _refused(line, reason)
            else:
                sent.append((line, ReplayLine(letter.resource_type, letter.as_of, line.raw, letter.id)))
        if sent:
            replays = land_replays(runtime, site, [replay for _, replay in sent])
            load_in_turn(runtime, site, replays, REPLAYED, replayed=before)
    if sent:
        with runtime.connect() as connection:
            repaired = [line for line, _ in sent]
            yield from _outcomes(connection, repaired, _keys(runtime, site, repaired))


def _refused(line: RepairedLine, reason: str) -> RepairOutcome:
    return RepairOutcome(line.place, line.letter, "refused", reason=reason)


def _letters(connection: psycopg.Connection, ids: Iterable[int | None]) -> dict[int, _Letter]:
    with connection.cursor(row_factory=class_row(_Letter)) as cursor:
        return {letter.id: letter for letter in cursor.execute(_LETTERS, (list(ids),))}


def _named(connection: psycopg.Connection, line: RepairedLine) -> RepairedLine:
    """The line with its letter; one without `# letter` is of the single open letter of its resource."""
    resource_type, resource_id = _type_and_id(line.raw)
    if line.letter is not None or resource_type is None or resource_id is None:
        return line
    found = connection.execute(
        "SELECT id FROM dead_letter WHERE state = 'open' AND resource_type = %s AND resource_id = %s LIMIT 2",
        (resource_type, resource_id),
    ).fetchall()
    return RepairedLine(found[0][0], line.raw, line.place) if len(found) == 1 else line


def _type_and_id(raw: bytes) -> tuple[str | None, str | None]:
    """None for what a line does not say, or cannot: it is rejected with its own reason."""
    resource: Any = None
    with suppress(orjson.JSONDecodeError):
        resource = orjson.loads(raw)
    if not isinstance(resource, dict):
        return None, None
    values = (resource.get("resourceType"), resource.get("id"))
    kind, given = (value if isinstance(value, str) and value and "\x00" not in value else None for value in values)
    return kind, given


def _keys(runtime: Runtime, site: SiteSettings, lines: Sequence[RepairedLine]) -> dict[int, int]:
    """Letter → surrogate id of the resource that its line is."""
    keys = SurrogateKeys(site.name, runtime.settings.surrogate_salt)
    found = {}
    for line in lines:
        resource_type, resource_id = _type_and_id(line.raw)
        if resource_type is not None and resource_id is not None:
            found[line.letter or 0] = keys.of(resource_type, resource_id)
    return found


def _newer_exports(connection: psycopg.Connection, keys: dict[int, int], letters: dict[int, _Letter]) -> dict[int, int]:
    """Letter → the export, newer than its line, from which the resource is known."""
    rows = connection.execute(
        "SELECT surrogate_id, as_of, export_id FROM resource_state WHERE surrogate_id = ANY(%s)", (list(keys.values()),)
    ).fetchall()
    states = {surrogate_id: (as_of, export_id) for surrogate_id, as_of, export_id in rows}
    known = {letter: states[key] for letter, key in keys.items() if key in states}
    return {letter: export_id for letter, (as_of, export_id) in known.items() if as_of > letters[letter].as_of}


def _why_refused(letter: _Letter, raw: bytes, newer_export: int | None) -> str | None:
    """Why a line is not sent; no id and no value of it is in the reason."""
    if letter.state != "open":
        return _why_closed(letter)
    if newer_export is not None:
        return (
            f"export {newer_export}, which is newer than the letter's line, has brought the resource: the repair would"
            " be superseded"
        )
    if raw.strip() == letter.raw.strip():
        return "the line is as it was: there is nothing new to load (`dead-letters replay` sends it again as it is)"
    resource_type, resource_id = _type_and_id(raw)
    if letter.resource_id is not None:  # else the letter does not know which resource it is about
        if resource_type is not None and resource_type != letter.resource_type:
            return f"the letter is about a resource of type {letter.resource_type}, and the line is of another type"
        if resource_id is not None and resource_id != letter.resource_id:
            return "the line has another id than the letter's resource: it would make a second one"
    return None


def _why_closed(letter: _Letter) -> str:
    when = f" on {letter.closed_at.astimezone(UTC):%Y-%m-%d}" if letter.closed_at else ""
    by = f" by export {letter.closed_by_export_id}" if letter.closed_by_export_id else ""
    if letter.state == "resolved":
        return f"it was resolved{when}{by}: there is nothing to repair"
    if letter.follower is not None:
        return f"it was superseded{when}{by}: a newer line of the resource is dead letter {letter.follower}; repair that one"
    return f"it was superseded{when}{by}: a newer line of the resource counts, or it is no longer in the exports"


def _outcomes(
    connection: psycopg.Connection, lines: Sequence[RepairedLine], keys: dict[int, int]
) -> Iterator[RepairOutcome]:
    ids = [line.letter for line in lines]
    rows = connection.execute("SELECT id, state, code, path, reason FROM dead_letter WHERE id = ANY(%s)", (ids,))
    known = {row[0]: row[1:] for row in rows}
    left_out: dict[int, str] = dict(
        connection.execute(
            "SELECT surrogate_id, coalesce(reason, '') FROM resource_state WHERE outcome = 'excluded' AND surrogate_id = ANY(%s)",
            (list(keys.values()),),
        ).fetchall()
    )
    for line in lines:
        letter = line.letter or 0
        state, code, path, reason = known[letter]
        if state == "open":
            yield RepairOutcome(line.place, letter, "open", code, path, reason)
        elif keys.get(letter) in left_out:
            yield RepairOutcome(line.place, letter, "excluded", reason=left_out[keys[letter]])
        else:
            yield RepairOutcome(line.place, letter, "loaded")
