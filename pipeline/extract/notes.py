"""What is to be reported of exports besides their lines: what did not come, what was done otherwise than the site says, and
what the site says itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from omop_schema.exports import ExportKind
from pipeline.landing.outcomes import SiteMessage

__all__ = ["ExportNotes", "export_notes"]


#: By reason of `etl.export_gap`.
_GAPS = {
    "lost": "Files that the site has no more (the types are incomplete, the others are loaded): {files}.",
    "unusable": "Files that never came as what they should be (the types are incomplete, the job stays at the site): {files}.",
    "count": "Files with another number of lines than the manifest says, taken as they came (the types are incomplete):"
    " {files}.",
}


@dataclass(frozen=True)
class ExportNotes:
    """Of some exports. `missing_types`: asked for, and no file came; in the order asked. `gaps`: (reason, type) → files
    that are not as the manifest announced. `choices`: sentences."""

    missing_types: tuple[str, ...] = ()
    messages: Counter[SiteMessage] | None = None
    gaps: Mapping[tuple[str, str], int] = field(default_factory=dict)
    choices: tuple[str, ...] = ()

    @property
    def by_weight(self) -> dict[str, int]:
        """Messages of the site, `fatal` first; without those that there are none of."""
        counts = Counter[str]()
        for message, count in (self.messages or Counter()).items():
            counts[message.weight] += count
        return {weight: counts[weight] for weight in ("fatal", "resource", "informational") if counts[weight]}

    def sentences(self) -> list[str]:
        """A sentence each, for people."""
        sentences = [*self.choices, *self._incomplete()]
        if self.missing_types:
            sentences.append(f"Asked for, but no file came: {', '.join(self.missing_types)}.")
        if self.by_weight:
            counts = ", ".join(f"{count:,} {weight}" for weight, count in self.by_weight.items())
            sentences.append(f"Messages of the site: {counts} ({', '.join(self._codes())}).")
        return sentences

    def _incomplete(self) -> Iterator[str]:
        for reason, sentence in _GAPS.items():
            files = ", ".join(
                f"{count:,} of {kind}" for (why, kind), count in sorted(self.gaps.items()) if why == reason
            )
            if files:
                yield sentence.format(files=files)

    def _codes(self, most: int = 6) -> list[str]:
        """The most frequent codes, such as `error forbidden 59108`, heaviest first."""
        order = {"fatal": 0, "resource": 1, "informational": 2}
        kinds = sorted(
            (self.messages or Counter()).items(), key=lambda item: (order[item[0].weight], -item[1], item[0])
        )
        names = [" ".join(filter(None, (kind.severity, kind.code, kind.site_code))) for kind, _ in kinds]
        return [*names[:most], *(["…"] if len(names) > most else [])]


def export_notes(connection: psycopg.Connection, export_ids: Sequence[int]) -> ExportNotes:
    """Notes of bulk exports that are landed; of others there are none."""
    ids = list(export_ids)
    missing = connection.execute(
        "SELECT asked.name FROM export_job AS job"
        " CROSS JOIN jsonb_array_elements_text(job.resource_types) WITH ORDINALITY AS asked (name, place)"
        f" WHERE job.export_id = ANY(%s) AND job.kind = '{ExportKind.BULK}' AND job.landed_at IS NOT NULL AND NOT EXISTS"
        " (SELECT FROM export_file AS file WHERE file.export_id = job.export_id AND file.resource_type = asked.name)"
        " ORDER BY asked.place",
        (ids,),
    ).fetchall()
    found = connection.execute(
        "SELECT weight, severity, code, site_code, sum(count)::bigint FROM export_outcome WHERE export_id = ANY(%s)"
        " GROUP BY weight, severity, code, site_code",
        (ids,),
    ).fetchall()
    messages = Counter({SiteMessage(*row[:4]): row[4] for row in found})
    gaps = connection.execute(
        "SELECT reason, resource_type, count(*) FROM export_gap WHERE export_id = ANY(%s) GROUP BY 1, 2", (ids,)
    ).fetchall()
    choices = connection.execute(
        "SELECT note FROM export_job CROSS JOIN jsonb_array_elements_text(notes) AS note"
        " WHERE export_id = ANY(%s) ORDER BY export_id",
        (ids,),
    ).fetchall()
    return ExportNotes(
        tuple(dict.fromkeys(row[0] for row in missing)),
        messages,
        {(reason, kind): count for reason, kind, count in gaps},
        tuple(dict.fromkeys(row[0] for row in choices)),
    )
