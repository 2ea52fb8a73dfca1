"""Whether the access log is whole: each entry's link holds a hash of the entry and of the link before.

It shows an entry that was changed or removed, links that were, and entries outside the chain. What it cannot show by itself is
a database owner who made the whole end of the chain anew: for that each check leaves an anchor, the last link that it saw, in
a file of the home; keep a copy of it elsewhere. Entries after the last anchor that the owner removed together with their
links are seen by nobody.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pipeline.core.files import replace_file

__all__ = ["ANCHOR_FILE", "ChainState", "check_chain"]

ANCHOR_FILE = "access_log.anchor"

_COUNTS = """
WITH link AS (
    SELECT position, entry_id, db_user, hash, lag(position) OVER along AS place_before, lag(hash) OVER along AS hash_before
    FROM access_link WINDOW along AS (ORDER BY position)
)
SELECT count(*), coalesce(max(link.position), 0),
    count(*) FILTER (WHERE entry.id IS NULL),
    count(*) FILTER (WHERE entry.id IS NOT NULL AND link.hash IS DISTINCT FROM
        access_hash(coalesce(hash_before, ''), link.position, db_user, to_jsonb(entry))),
    count(*) FILTER (WHERE link.position <> coalesce(place_before, 0) + 1)
FROM link LEFT JOIN access_log AS entry ON entry.id = link.entry_id
"""


@dataclass(frozen=True)
class ChainState:
    """What a check saw. `problems` are sentences without content of entries; none: the log is whole."""

    entries: int
    #: SHA-256 of the last link, hexadecimal: to note down, or to compare with.
    hash: str
    problems: tuple[str, ...]


def check_chain(connection: psycopg.Connection, home: Path) -> ChainState:
    """Recompute every hash, compare with the anchor of the last check, and leave a new one where all is well.

    One pass over the log, in one state of it. The search_path begins with the etl schema, the time zone is UTC.
    """
    connection.commit()  # one state for all statements: writers continue meanwhile
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = connection.execute(_COUNTS).fetchone()
        assert row is not None
        links, last, removed, changed, gaps = row
        outside = connection.execute(
            "SELECT count(*) FROM access_log WHERE NOT EXISTS (SELECT FROM access_link WHERE entry_id = access_log.id)"
        ).fetchone()
        head = connection.execute("SELECT chain_id::text, position, hash FROM access_head").fetchall()
        ending = connection.execute("SELECT hash FROM access_link WHERE position = %s", (last,)).fetchone()
        final = bytes(ending[0]) if ending else b""
        found = {
            "{} entries were removed": removed,
            "{} entries, or links before them, were changed": changed,
            "{} links are missing": gaps,
            "{} entries were added outside the chain": outside[0] if outside else 0,
            "the end of the chain is not where it was": 0 if [bytes(one[2]) for one in head] == [final] else 1,
        }
        anchor = _read_anchor(home)
        if len(head) == 1 and anchor and anchor.get("chain_id") == head[0][0]:
            found[f"what was there at the last check (entry {anchor['position']}) is not there any more"] = _lost(
                connection, anchor
            )
    problems = tuple(text.format(f"{count:,}") for text, count in found.items() if count)
    if not problems and head:
        _write_anchor(home, {"chain_id": head[0][0], "position": last, "hash": final.hex()})
    return ChainState(links, final.hex(), problems)


def _lost(connection: psycopg.Connection, anchor: dict[str, object]) -> int:
    if not anchor["position"]:
        return 0
    row = connection.execute("SELECT hash FROM access_link WHERE position = %s", (anchor["position"],)).fetchone()
    return int(row is None or bytes(row[0]).hex() != anchor["hash"])


def _read_anchor(home: Path) -> dict[str, object] | None:
    try:
        anchor = json.loads((home / ANCHOR_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return anchor if isinstance(anchor, dict) and {"chain_id", "position", "hash"} <= anchor.keys() else None


def _write_anchor(home: Path, anchor: dict[str, object]) -> None:
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(home / ANCHOR_FILE, json.dumps(anchor).encode())
