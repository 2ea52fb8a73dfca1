"""`epic-omop backup` and `epic-omop restore`, for people."""

from __future__ import annotations

from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.help_texts import CommandGroup
from pipeline.commands.output import Column, CsvOption, JsonOption, Listing, print_json, refuse_both, show
from pipeline.commands.terminal import Terminal, echo
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.operations.backup.create import Stage
    from pipeline.operations.backup.manifest import Manifest
    from pipeline.operations.backup.restoring import Restored

__all__ = ["app", "restore"]

_Folder = Annotated[Path, typer.Argument(help="The folder of backups.")]
_Backup = Annotated[str | None, typer.Option("--backup", help="Which one, by its name; without it the newest.")]


class _BackupGroup(CommandGroup):
    """`backup FOLDER` is `backup create FOLDER`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and "--help" not in args:
            slip = get_close_matches(args[0], self.commands, n=1)
            if slip and not Path(args[0]).exists():
                raise UsageError(f"There is no command {args[0]!r}.", f"Did you mean {slip[0]}? A folder: ./{args[0]}.")
            args = ["create", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_BackupGroup,
    no_args_is_help=True,
    help="Back up the database, landed files and settings: `epic-omop backup FOLDER` (docs/backup.md).\n\n"
    "Nights may run meanwhile. A further backup in the same folder copies only files that are new.",
)


@app.command()
def create(
    folder: _Folder,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="Also private keys and other secrets: keep the folder as safe as them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a backup in a folder; `epic-omop backup FOLDER` does the same.

    Exit code 0: the backup is whole; 74: a disk is full or refuses (run it again: what is complete is kept); 75: another
    backup is being made there.

    Example: epic-omop backup /mnt/backups
    """
    from pipeline.operations.backup.create import create_backup
    from pipeline.warehouse.runtime import Runtime

    with _shown() as progress:
        manifest = create_backup(
            Runtime.from_environment(), folder.absolute(), include_secrets=secrets, progress=progress
        )
    if as_json:
        print_json(_summary(manifest))
        return
    echo(f"Backup {manifest.backup} is whole: {_contents(manifest)}.")
    if manifest.left_out:
        echo(f"Left out, to be kept elsewhere: {', '.join(manifest.left_out)}.")
    echo("Look at it again, also where you copy it to: epic-omop backup check FOLDER")


@app.command()
def check(folder: _Folder, backup: _Backup = None, as_json: JsonOption = False) -> None:
    """Read a backup again and compare every digest. Needs no database.

    Exit code 0: whole; 2: no backup, or one of a newer version; 74: damaged.

    Example: epic-omop backup check /mnt/backups
    """
    from pipeline.operations.backup.restoring import check_backup

    with _shown() as progress:
        manifest = check_backup(folder.absolute(), backup, progress)
    if as_json:
        print_json(_summary(manifest))
    else:
        echo(f"Backup {manifest.backup} is whole: {_contents(manifest)}.")


@app.command("list")
def list_(folder: _Folder, as_json: JsonOption = False, as_csv: CsvOption = False) -> None:
    """List the backups of a folder, the oldest first.

    Example: epic-omop backup list /mnt/backups
    """
    from pipeline.operations.backup.manifest import backups_in, read_manifest

    refuse_both(as_json=as_json, as_csv=as_csv)
    columns = [
        Column("backup", "backup", "code"),
        Column("program", "version", "code"),
        Column("cdm_version", "CDM", "code"),
        Column("postgresql", "PostgreSQL", "code"),
        Column("database_bytes", "database", "size"),
        Column("landing_bytes", "landing", "size"),
        Column("files", "files", "count"),
    ]
    listing = Listing("Backups", columns)
    for name in backups_in(folder.absolute()):
        one = read_manifest(folder / name)
        listing.add(one.backup, one.program, one.cdm_version, str(one.server_major), one.dump_bytes, one.landing_bytes,
                    len(one.files))  # fmt: skip
    show(Terminal(highlight=False), listing, as_json=as_json, as_csv=as_csv)


@app.command()
def prune(
    folder: _Folder,
    keep: Annotated[int, typer.Option("--keep", min=1, max=10_000, help="How many of the newest backups stay.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove old backups, and the files that no other backup needs. Safe to stop: run it again.

    Example: epic-omop backup prune /mnt/backups --keep 14
    """
    from pipeline.operations.backup.pruning import prune_backups

    found = prune_backups(folder.absolute(), keep, is_dry=dry_run)
    if as_json:
        print_json({"removed": found.removed, "kept": found.kept, "files": found.files, "bytes": found.bytes})
        return
    would = "would go" if dry_run else "removed"
    echo(
        f"{len(found.removed)} backups and {found.files} files ({found.bytes:,} bytes) {would}; {len(found.kept)} stay."
    )


def restore(
    folder: _Folder,
    backup: _Backup = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the warehouse that is there, and put aside what the home holds.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into the home and database of the settings, which are empty (docs/backup.md).

    Everything is compared with its digest first. Stopped or failed, run the same command again. Exit code 0: done; 2: no
    backup, one of a newer version, or home or database in use; 74: damaged, or a disk is full.

    Example: EPIC_OMOP_HOME=/srv/new epic-omop restore /mnt/backups
    """
    from pipeline.operations.backup.restoring import restore_backup
    from pipeline.warehouse.runtime import Runtime

    with _shown() as progress:
        restored = restore_backup(
            Runtime.from_environment(), folder.absolute(), backup=backup, force=force, progress=progress
        )
    if as_json:
        print_json(
            {**_summary(restored.manifest), "not_granted": restored.not_granted, "put_aside": restored.put_aside}
        )
        return
    _print_restored(restored)


def _print_restored(restored: Restored) -> None:
    manifest = restored.manifest
    echo(f"Backup {manifest.backup} is restored: {_contents(manifest)}.")
    if restored.put_aside:
        echo(f"What the home held is in {restored.put_aside}; delete it when it is no longer needed.")
    if manifest.left_out:
        echo(f"Not in the backup; put back before the next load: {', '.join(manifest.left_out)}.")
    if manifest.variables:
        echo(f"Variables that were set when it was made: {', '.join(manifest.variables)}.")
    if restored.missing_roles:
        echo("This database user may not make the roles; `epic-omop db init` prints their SQL.")
    for role, user in restored.not_granted:
        echo(f"Not granted again: epic-omop db grant {role} {user}")
    echo(
        f"Persons who were erased after {manifest.created_at[:16].replace('T', ' ')} UTC are back, and `erase --list` does"
        " not name them. Erase them again before the next load: epic-omop erase --site SITE --patient-file FILE"
    )
    echo("Next: epic-omop verify")


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "backup": manifest.backup,
        "created_at": manifest.created_at,
        "program": manifest.program,
        "cdm_version": manifest.cdm_version,
        "postgresql": manifest.server_major,
        "alembic_revision": manifest.alembic_revision,
        "database_bytes": manifest.dump_bytes,
        "landing_bytes": manifest.landing_bytes,
        "files": len(manifest.files),
        "left_out": manifest.left_out,
    }


def _contents(manifest: Manifest) -> str:
    return (
        f"the database ({manifest.dump_bytes:,} bytes, PostgreSQL {manifest.server_major}, CDM {manifest.cdm_version}) and"
        f" {len(manifest.files)} files ({sum(file.bytes for file in manifest.files):,} bytes)"
    )


@contextmanager
def _shown() -> Iterator[Stage]:
    """What is done, on standard error while it is a terminal."""
    with Terminal(stderr=True).status("backup") as status:

        def update(stage: str, done: int, total: int) -> None:
            status.update(f"{stage}: {done:,} of {total:,} bytes" if total else f"{stage}: {done:,} bytes")

        yield update
