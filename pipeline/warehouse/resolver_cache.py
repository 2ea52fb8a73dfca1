"""What resolvers said about codes: one Parquet file a resolver below the home, and when it may be asked again.

An answer counts for the vocabulary release that was active when it was given, and for the release that the service named
then (f2o-111). That a service does not know a code counts for a while. Errors are never kept. Who is asked is in
`pipeline.extract.terminology`; that workers read the answers is done by `pipeline.warehouse.local_map.overlay`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl
from filelock import FileLock

from pipeline.core.files import disk_errors, make_folder, replace_file
from pipeline.core.resolver_settings import ResolverSettings

__all__ = [
    "RESOLVED_SCHEMA",
    "AnswerCache",
    "AnswerStatus",
    "AskedCode",
    "DroppedAnswers",
    "Pause",
    "RemappedAnswers",
    "ResolverAnswer",
    "cached_answers",
    "drop_old_answers",
    "sent_systems",
]

#: exact: its targets are concepts of the code. suggestion: for people alone. none: the service knows no concept.
AnswerStatus = Literal["exact", "suggestion", "none"]

_TIME = pl.Datetime("us", "UTC")
_CACHE_SCHEMA: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "resolver": pl.String,
    "base_url": pl.String,
    "vocabulary_hash": pl.String,
    "release": pl.String,
    "system": pl.String,
    "code": pl.String,
    "status": pl.String,
    "target_concept_id": pl.Int64,
    "value_concept_id": pl.Int64,
    "asked_at": _TIME,
    "expires_at": _TIME,
}
_KEY = ("vocabulary_hash", "system", "code")
_SYSTEM = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+|[0-2](\.[0-9]+)+")

#: What a site's resolvers say: `place` is the resolver's in their order, from 0.
RESOLVED_SCHEMA: Mapping[str, pl.DataType | type[pl.DataType]] = {
    "place": pl.Int32,
    "system": pl.String,
    "code": pl.String,
    "target_concept_id": pl.Int64,
    "value_concept_id": pl.Int64,
}


@dataclass(frozen=True, order=True)
class AskedCode:
    """A code, its system, and what its resource calls it, which is sent by an explicit setting alone."""

    system: str
    code: str
    display: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.system, self.code


@dataclass(frozen=True)
class ResolverAnswer:
    """What a service says about a code."""

    system: str
    code: str
    status: AnswerStatus
    #: (target_concept_id, value_concept_id)
    targets: tuple[tuple[int, int | None], ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.system, self.code


@dataclass(frozen=True)
class Pause:
    """A resolver is left alone until then."""

    until: datetime
    problem: str


class AnswerCache:
    """The answers of one resolver under the active vocabulary release. Raises LandingError when the disk refuses."""

    def __init__(self, home: Path, resolver: ResolverSettings, vocabulary_hash: str) -> None:
        self._folder = home / "vocabulary" / "resolvers"
        self._file = self._folder / f"{resolver.key}.parquet"
        self._resolver = resolver
        self._hash = vocabulary_hash
        self._frame = self._read()

    def known(self, now: datetime) -> dict[tuple[str, str], ResolverAnswer]:
        """(system, code) → its answer, as long as it counts."""
        counting = self._current().filter(pl.col("expires_at").is_null() | (pl.col("expires_at") > now))
        found: dict[tuple[str, str], ResolverAnswer] = {}
        for system, code, status, target, value in counting.select(
            "system", "code", "status", "target_concept_id", "value_concept_id"
        ).iter_rows():
            before = found.get((system, code))
            targets = (*(before.targets if before else ()), *([(target, value)] if target else ()))
            found[system, code] = ResolverAnswer(system, code, status, targets)
        return found

    def former(self) -> list[AskedCode]:
        """Codes that had a concept under another release, and have no answer under the one of today."""
        keys = ["system", "code"]
        former = self._frame.filter(pl.col("status") == "exact").join(self._current(), on=keys, how="anti")
        return [AskedCode(*key) for key in sorted(set(former.select(keys).iter_rows()))]

    @property
    def release(self) -> str:
        """The release that the service named last; empty where it never named one."""
        named = self._frame.filter(pl.col("vocabulary_hash") == self._hash, pl.col("release") != "")
        return str(named.sort("asked_at", "release")["release"][-1]) if named.height else ""

    def put(self, answers: Sequence[ResolverAnswer], release: str, now: datetime, expires: datetime) -> None:
        """Keep answers of now; those without an exact concept until `expires`."""
        rows = [
            (
                *(self._resolver.kind, self._resolver.base_url, self._hash, release, answer.system, answer.code),
                *(answer.status, target, value, now, None if answer.status == "exact" else expires),
            )
            for answer in answers
            for target, value in (answer.targets or ((None, None),))
        ]
        new = pl.DataFrame(rows, schema=dict(_CACHE_SCHEMA), orient="row")
        if new.is_empty():
            return
        with disk_errors("Answers of resolvers", self._folder, "They are asked for again."):
            make_folder(self._folder)
            with FileLock(self._folder / ".lock"):
                kept = self._read().join(new, on=list(_KEY), how="anti")
                self._frame = pl.concat([kept, new]).sort(*_KEY, "target_concept_id", "value_concept_id")
                buffer = io.BytesIO()
                self._frame.write_parquet(buffer)
                replace_file(self._file, buffer.getvalue())

    @property
    def pause(self) -> Pause | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._pause_file.read_bytes())
            return Pause(datetime.fromisoformat(kept["until"]), str(kept["problem"]))
        return None

    def set_pause(self, pause: Pause | None) -> None:
        if pause is None:
            self._pause_file.unlink(missing_ok=True)
            return
        with disk_errors("The pause of a resolver", self._folder, "It is asked again at once."):
            make_folder(self._folder)
            content = {"until": pause.until.isoformat(), "problem": pause.problem}
            replace_file(self._pause_file, json.dumps(content).encode())

    def exact(self) -> pl.DataFrame:
        """system, code, target_concept_id, value_concept_id of the codes that have a concept."""
        names = ["system", "code", "target_concept_id", "value_concept_id"]
        return self._current().filter(pl.col("status") == "exact").select(names).drop_nulls("target_concept_id")

    @property
    def _pause_file(self) -> Path:
        return self._file.with_suffix(".pause.json")

    def _current(self) -> pl.DataFrame:
        """What counts: an answer that no concept is in may name no release."""
        return self._frame.filter(
            pl.col("vocabulary_hash") == self._hash, (pl.col("release") == self.release) | (pl.col("release") == "")
        )

    def _read(self) -> pl.DataFrame:
        """A file that cannot be read is as none: all is asked for again."""
        with suppress(OSError, pl.exceptions.PolarsError):
            return pl.read_parquet(self._file).select(pl.col(name).cast(kind) for name, kind in _CACHE_SCHEMA.items())
        return pl.DataFrame(schema=dict(_CACHE_SCHEMA))


@dataclass(frozen=True)
class DroppedAnswers:
    """Rows of the caches of all resolvers."""

    removed: int
    kept: int


def drop_old_answers(home: Path, before: datetime | None, now: datetime, *, is_dry: bool) -> DroppedAnswers:
    """Take out what was asked `before` (None: nothing) and is not used any more: answers that ended, and those of a release
    to codes that have one under a later release. What a code was under another release stays where nothing newer is known.

    A cache that cannot be read is left: it counts as none. Raises LandingError when the disk refuses.
    """
    folder = home / "vocabulary" / "resolvers"
    removed = kept = 0
    for file in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        lock: AbstractContextManager[object] = nullcontext() if is_dry else FileLock(folder / ".lock")
        with disk_errors("Answers of resolvers", folder, "They are asked for again."), lock:
            try:
                frame = pl.read_parquet(file)
            except pl.exceptions.PolarsError:
                continue
            newest = pl.col("asked_at").max().over("system", "code")
            ended = (pl.col("expires_at") <= now).fill_null(False)
            is_old = pl.lit(False) if before is None else pl.col("asked_at") < before
            left = frame.filter(~(is_old & (ended | (pl.col("asked_at") < newest))))
            removed, kept = removed + frame.height - left.height, kept + left.height
            if left.height < frame.height and not is_dry:
                buffer = io.BytesIO()
                left.write_parquet(buffer)
                replace_file(file, buffer.getvalue())
    return DroppedAnswers(removed, kept)


def cached_answers(
    home: Path, resolvers: Iterable[ResolverSettings], vocabulary_hash: str, canonical: Callable[[str], str]
) -> pl.DataFrame:
    """What a site's resolvers said exactly, under this release, about systems that each may be asked about.

    `canonical`: the one name of a code system. Columns: RESOLVED_SCHEMA.
    """
    frames = [pl.DataFrame(schema=dict(RESOLVED_SCHEMA))]
    for place, resolver in enumerate(resolvers):
        said = AnswerCache(home, resolver, vocabulary_hash).exact()
        may_be_sent = sent_systems(resolver, said["system"].unique().to_list(), canonical)
        said = said.filter(pl.col("system").is_in(sorted(may_be_sent)))
        frames.append(said.with_columns(pl.lit(place, dtype=pl.Int32).alias("place")).select(list(RESOLVED_SCHEMA)))
    return pl.concat(frames)


def sent_systems(resolver: ResolverSettings, systems: Iterable[str], canonical: Callable[[str], str]) -> set[str]:
    """Of these systems those whose codes a resolver may be asked about.

    A system is a URI, or a bare OID. What mappings make of texts, such as the names of payers, has a system of one word:
    that is text, and stays in the house.
    """
    named = {canonical(system) for system in resolver.systems}
    return {system for system in systems if _SYSTEM.fullmatch(system) and (not named or canonical(system) in named)}


class RemappedAnswers:
    """The answers by which a site was mapped last: where there are others, a remap is due, also when the run that brought
    them was stopped, or found another remap."""

    def __init__(self, home: Path, site: str) -> None:
        self._folder = home / "vocabulary" / "resolvers"
        self._file = self._folder / f"{site}.mapped"  # of another kind than caches, which are *.parquet

    def lack_any_of(self, answers: pl.DataFrame) -> bool:
        with suppress(OSError, pl.exceptions.PolarsError):
            return (
                answers.join(pl.read_parquet(self._file), on=answers.columns, how="anti", nulls_equal=True).height > 0
            )
        return answers.height > 0

    def put(self, answers: pl.DataFrame) -> None:
        with disk_errors("Answers of resolvers", self._folder, "They are mapped again."):
            make_folder(self._folder)
            buffer = io.BytesIO()
            answers.write_parquet(buffer)
            replace_file(self._file, buffer.getvalue())
