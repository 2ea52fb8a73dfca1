"""Taking files and lines out of a finished export that nothing needs any more.

Lines that are needed are copied into new files of the same export, one for each resource type, unless they are most of
their file: that one stays as it is. The order is such that a process may die anywhere: copies are written, then the manifest
lists them beside the old files, then whoever knows places of lines moves them, and then the old files go. What a dead
process leaves is found again by the next run: copies that nothing refers to, or old files that nothing refers to.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from pipeline.core.files import landing_errors, sync_folder
from pipeline.landing.reading import read_lines_at
from pipeline.landing.store import LandedExport, LandedFile, LandingDraft

__all__ = ["MovedLine", "PlannedExport", "copy_needed", "plan_export", "remove_rest"]

#: A file of which more than this share is needed stays as it is.
_MOSTLY_NEEDED = 0.5

#: (offset, length)
LinePosition = tuple[int, int]


@dataclass(frozen=True)
class PlannedExport:
    """What is to become of an export's files. `compacted`: the places of a file that are needed, in their order."""

    export: LandedExport
    staying: tuple[LandedFile, ...] = ()
    removed: tuple[LandedFile, ...] = ()
    compacted: Mapping[LandedFile, tuple[LinePosition, ...]] = field(default_factory=dict)

    @property
    def is_needed(self) -> bool:
        return bool(self.staying or self.compacted)

    @property
    def changes(self) -> bool:
        return bool(self.removed or self.compacted or self.export.outcomes)

    @property
    def kept_lines(self) -> int:
        return sum(map(len, self.compacted.values()))


@dataclass(frozen=True, slots=True)
class MovedLine:
    """Where a line was, and where it is now. `line` is its number in the new file."""

    old_file: LandedFile
    old_offset: int
    new_file: LandedFile
    offset: int
    line: int


def plan_export(export: LandedExport, needed: Mapping[int, Iterable[LinePosition]]) -> PlannedExport:
    """Decide about every file. `needed`: file number → places of the lines that must stay."""
    staying, removed, compacted = [], [], {}
    for file in export.files:
        places = tuple(sorted(set(needed.get(file.number, ()))))
        if not places:
            removed.append(file)
        elif sum(length + 1 for _, length in places) > _MOSTLY_NEEDED * file.bytes:
            staying.append(file)
        else:
            compacted[file] = places
    for file in export.deleted:  # small, and their lines are several entries: whole or not at all
        (staying if needed.get(file.number) else removed).append(file)
    return PlannedExport(export, tuple(staying), tuple(removed), compacted)


def copy_needed(plan: PlannedExport, first_number: int, at: datetime) -> list[MovedLine]:
    """Write the needed lines of compacted files into new ones, numbered from `first_number`; list them in the manifest.

    All old files stay. The export counts as pruned from here on. Raises LandingError.
    """
    draft = LandingDraft(plan.export.folder, plan.export.site, plan.export.export_id)
    _sweep(plan.export.folder, _all_files(plan.export))
    moved: list[MovedLine] = []
    new: list[LandedFile] = []
    for number, resource_type in enumerate(sorted({file.resource_type for file in plan.compacted}), start=first_number):
        files = [file for file in plan.compacted if file.resource_type == resource_type]
        kept, lines = _copied(draft, number, resource_type, {file: plan.compacted[file] for file in files})
        new.append(kept)
        moved += lines
    draft.write_manifest(replace(plan.export, files=(*plan.export.files, *new), pruned_at=at))
    return moved


def _copied(
    draft: LandingDraft, number: int, resource_type: str, places: Mapping[LandedFile, Sequence[LinePosition]]
) -> tuple[LandedFile, list[MovedLine]]:
    moved: list[tuple[LandedFile, int, int, int]] = []
    with draft.writer(number, resource_type) as writer:
        for file, of_file in places.items():
            for (offset, _), raw in zip(of_file, read_lines_at(file.path, of_file), strict=True):
                moved.append((file, offset, writer.bytes_written, len(moved) + 1))
                writer.write(raw + b"\n")
        kept = draft.keep(writer, number, resource_type)
    return kept, [MovedLine(file, old, kept, offset, line) for file, old, offset, line in moved]


def remove_rest(plan: PlannedExport, moved: Sequence[MovedLine], at: datetime) -> None:
    """Remove what nothing refers to: old files, or the whole folder of an export of which nothing is needed."""
    folder = plan.export.folder
    if not plan.is_needed:
        with landing_errors(folder):
            (folder / "manifest.json").unlink(missing_ok=True)  # first: what is half removed is not an export
            sync_folder(folder)
            shutil.rmtree(folder)
        return
    new = dict.fromkeys(line.new_file for line in moved)
    numbers = {file.number for file in (*plan.staying, *new)}
    listed = (*plan.export.files, *new)
    pruned = replace(
        plan.export,
        files=tuple(sorted((file for file in listed if file.number in numbers), key=lambda file: file.number)),
        deleted=tuple(file for file in plan.export.deleted if file.number in numbers),
        outcomes=(),
        pruned_at=at,
    )
    LandingDraft(folder, pruned.site, pruned.export_id).write_manifest(pruned)
    _sweep(folder, _all_files(pruned))


def _all_files(export: LandedExport) -> tuple[LandedFile, ...]:
    return (*export.files, *export.outcomes, *export.deleted)


def _sweep(folder: Path, listed: Iterable[LandedFile]) -> None:
    export = folder
    LandingDraft(export, export.parent.name, int(export.name)).sweep({file.path for file in listed})
