"""Suggestions measured on pairs of a text and the concept that it means: recall at 10 and at 1, and the time of a text.

    EPIC_OMOP_HOME=… python -m benchmarks.suggestions PAIRS.tsv [--domains] [--texts 500]

PAIRS is tab-separated with a header: text, concept_id. The vocabulary is the one that is loaded in EPIC_OMOP_HOME; of a
pair whose concept it lacks nothing is asked. `--domains` asks each text within the domain of its concept, as an export
does for elements that take one. Each text is asked once in an order by chance, without a first round that would warm the
caches. Seconds are wall and, where the server's process can be seen, CPU of this program and of the server.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pipeline.quality.unmapped.suggestions import Suggestions
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.vocabulary.name_index import ensure_name_index

__all__ = ["main"]

_LIMIT = 10


@dataclass(frozen=True)
class Pair:
    """What is asked, and the concept that it means with its domain."""

    text: str
    concept_id: int
    domain_id: str


@dataclass(frozen=True)
class Answered:
    """Place of the concept among the suggestions, from 1; None: it is not among them. CPU: of both processes."""

    pair: Pair
    place: int | None
    wall_seconds: float
    cpu_seconds: float


def read_pairs(path: Path, connection: psycopg.Connection, vocab_schema: str) -> list[Pair]:
    """Those whose concept is loaded and Standard."""
    with path.open(encoding="utf-8", newline="") as source:
        given = [
            (row["text"], int(row["concept_id"]))
            for row in csv.DictReader(source, delimiter="\t", quoting=csv.QUOTE_NONE)
        ]
    domains = dict(
        connection.execute(
            f"SELECT concept_id, domain_id FROM {vocab_schema}.concept"  # type: ignore[arg-type]
            " WHERE standard_concept = 'S' AND invalid_reason IS NULL AND concept_id = ANY(%s)",
            ([concept_id for _, concept_id in given],),
        ).fetchall()
    )
    return [Pair(text, concept_id, domains[concept_id]) for text, concept_id in given if concept_id in domains]


def ask(suggest: Suggestions, pair: Pair, *, in_domain: bool) -> Answered:
    """One question."""
    server = Path(f"/proc/{suggest.connection.info.backend_pid}/stat")
    cpu, started = _cpu_of(server) + time.process_time(), time.perf_counter()
    domains = frozenset(pair.domain_id.split("/")) if in_domain else None
    found = [item.concept_id for item in suggest.of_text(pair.text, domains, _LIMIT)]
    wall = time.perf_counter() - started
    place = found.index(pair.concept_id) + 1 if pair.concept_id in found else None
    return Answered(pair, place, wall, _cpu_of(server) + time.process_time() - cpu)


def report(answers: Sequence[Answered]) -> str:
    """One line for people."""
    count = len(answers)
    within = {most: sum(one.place is not None and one.place <= most for one in answers) for most in (1, 5, 10)}
    walls = sorted(one.wall_seconds for one in answers)
    cpus = sorted(one.cpu_seconds for one in answers)
    recalls = ", ".join(f"at {most} {hits / count:.3f}" for most, hits in within.items())
    return f"{count} texts: recall {recalls}; ms a text, median/95th/most: wall {_three(walls)}, CPU {_three(cpus)}"


def _three(ordered: Sequence[float]) -> str:
    places = (len(ordered) // 2, min(int(len(ordered) * 0.95), len(ordered) - 1), len(ordered) - 1)
    return "/".join(f"{1000 * ordered[place]:.0f}" for place in places)


def _cpu_of(stat: Path) -> float:
    """Seconds of user and system; 0 where the server is on another machine. Clock ticks are hundredths on Linux."""
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", type=Path, help="tab-separated file with the columns text, concept_id")
    parser.add_argument("--domains", action="store_true", help="ask within the domain of each concept")
    parser.add_argument("--texts", type=int, help="so many of them, by chance")
    parser.add_argument("--slowest", type=int, default=0, help="name so many of the slowest texts")
    parser.add_argument("--missed", type=int, default=0, help="name so many of those that were not found")
    given = parser.parse_args()
    runtime = Runtime.from_environment()
    settings = runtime.settings
    index = ensure_name_index(
        runtime.url,
        cdm_schema=settings.cdm_schema,
        vocab_schema=settings.vocab_schema,
        etl_schema=settings.etl_schema,
    )
    with runtime.connect() as connection:
        pairs = read_pairs(given.pairs, connection, settings.vocab_schema)
        random.Random(1).shuffle(pairs)
        suggest = Suggestions(connection, index)
        answers = [ask(suggest, pair, in_domain=given.domains) for pair in pairs[: given.texts]]
    if not answers:
        parser.error("no concept of these pairs is a Standard one of the loaded vocabulary")
    print(report(answers))
    for one in sorted(answers, key=lambda item: -item.wall_seconds)[: given.slowest]:
        print(f"{1000 * one.wall_seconds:.0f} ms, CPU {1000 * one.cpu_seconds:.0f}: {one.pair.text}")
    for one in [item for item in answers if item.place is None][: given.missed]:
        print(f"missed: {one.pair.text} → {one.pair.concept_id}")


if __name__ == "__main__":
    main()
