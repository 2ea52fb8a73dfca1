"""Which dead letters are written into a file to be repaired, each with what is wrong with it and its whole line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.errors import UsageError
from pipeline.load.follow_ups import lines_of_dead_letters
from pipeline.publication import dead_letters
from pipeline.publication.dead_letters import RawLine
from pipeline.warehouse.runtime import Runtime

__all__ = ["LineToRepair", "lines_to_repair"]


@dataclass(frozen=True)
class LineToRepair:
    """An open letter, what is wrong with its line (no value of it), and the line."""

    letter: int
    site: str
    problem: str
    raw: bytes


def lines_to_repair(
    runtime: Runtime, letters: Sequence[int], *, code: str | None = None, site: str | None = None
) -> list[LineToRepair]:
    """Lines of open letters: those named, and with `code` all of it, of all sites or one.

    Raises UsageError for a letter that is not open, LandingError where a long line is in no landed export any more.
    """
    with runtime.connect() as connection:
        sites = connection.execute(
            "SELECT id, site, stage, code, path, reason FROM dead_letter WHERE state = 'open' AND (id = ANY(%(ids)s)"
            " OR (code = %(code)s AND (%(site)s::text IS NULL OR site = %(site)s))) ORDER BY id",
            {"ids": list(letters), "code": code, "site": site},
        ).fetchall()
        about = {letter: rest for letter, *rest in sites}
        if missing := [letter for letter in letters if letter not in about]:
            raise UsageError(
                f"Dead letter {', '.join(map(str, missing))} is not open, or is none.",
                "`epic-omop dead-letters list` shows the open ones.",
            )
        lines: list[RawLine] = []
        for of_site in sorted({row[1] for row in sites}):
            lines += dead_letters.open_lines(connection, site=of_site, ids=list(about))
    raws = [line.raw for line in lines_of_dead_letters(runtime, lines)]
    found = [
        LineToRepair(line.id, line.site, _problem(*about[line.id]), raw) for line, raw in zip(lines, raws, strict=True)
    ]
    return sorted(found, key=lambda one: one.letter)


def _problem(site: str, _stage: str, code: str, path: str | None, reason: str) -> str:
    return f"{code}{f' at {path}' if path else ''} ({site}): {reason}"
