"""Going back to a release that is still there, and letting go of those that nobody needs."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.core.clock import Clock
from pipeline.core.errors import UsageError, VocabularyError
from pipeline.warehouse.connection import connect
from pipeline.warehouse.vocabulary.releases import (
    ReleaseSchemas,
    VocabularyRelease,
    find_release,
    load_lock,
    prune_releases,
    usable,
)
from pipeline.warehouse.vocabulary.structure import plain_names
from pipeline.warehouse.vocabulary.switching import PATIENCE_SECONDS, Switch, broken_references, switch_release

__all__ = ["prune_vocabulary", "use_release"]


def use_release(
    url: str,
    name: str,
    *,
    vocab_schema: str,
    etl_schema: str,
    force: bool = False,
    clock: Clock | None = None,
    patience: float = PATIENCE_SECONDS,
    waiting: Callable[[str], None] = lambda _: None,
) -> Switch:
    """Make another release that is still there the active one: `name` is its label, or how its hash begins.

    Raises UsageError for a name that no release, or more than one, has; VocabularyError where its tables are gone, where it
    is older than the active one, unless forced, and where somebody is in the way (`switch_release`).
    """
    schemas = ReleaseSchemas(vocab_schema, etl_schema)
    with load_lock(url):
        with connect(url) as connection:
            releases = schemas.all(connection)
            release = usable(find_release(releases, name))
            active = next((item for item in releases if item.is_current), None)
            if release.is_current:
                return Switch(release, ())
            if active is not None and release.is_older_than(active) and not force:
                raise VocabularyError(
                    f"Vocabulary {release.release} is older than the active one, {active.release}.",
                    "To go back to it all the same: --force.",
                )
            plain_names(connection)
            assert release.schema_name is not None
            if broken := broken_references(connection, vocab_schema, release.schema_name):
                raise VocabularyError(
                    f"Vocabulary {release.release} cannot become the active one: {'; '.join(broken[:3])}.",
                    "Drop these foreign keys, or load a download that has these concepts.",
                )
        # What the download itself brought was given to the release when it was loaded; what the site has now counts.
        is_new = release.active_since is None
        return switch_release(
            url,
            schemas,
            release,
            replace_custom=not (is_new and release.notes.get("own_custom")),
            with_map=True,
            clock=clock,
            patience=patience,
            waiting=waiting,
        )


def prune_vocabulary(
    url: str, *, vocab_schema: str, etl_schema: str, keep: int
) -> tuple[list[VocabularyRelease], list[str]]:
    """Drop the tables of releases but the active one and the `keep` - 1 that were active last; returns those that went, and
    a sentence for each that had to stay. Raises UsageError for `keep` < 1."""
    if keep < 1:
        raise UsageError("The active release is always kept.", "Give --keep 1 or more.")
    with load_lock(url):
        return prune_releases(url, ReleaseSchemas(vocab_schema, etl_schema), keep=keep)
