"""Suggestions of concepts for commands: the names of a release are prepared first, and people are told so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.commands.terminal import echo

if TYPE_CHECKING:
    from pipeline.quality.unmapped.suggestions import Suggestions
    from pipeline.warehouse.runtime import Runtime

__all__ = ["open_suggestions"]


@contextmanager
def open_suggestions(runtime: Runtime) -> Iterator[Suggestions]:
    """Raises VocabularyError where no vocabulary is loaded, or where this user may not prepare its names."""
    from pipeline.quality.unmapped.suggestions import Suggestions
    from pipeline.warehouse.vocabulary.name_index import ensure_name_index

    settings = runtime.settings
    index = ensure_name_index(
        runtime.url,
        cdm_schema=settings.cdm_schema,
        vocab_schema=settings.vocab_schema,
        etl_schema=settings.etl_schema,
        before=lambda: echo("Preparing the names of the vocabulary, once for this release …", err=True),
    )
    if index.note:
        echo(index.note, err=True)
    with runtime.connect() as connection:
        yield Suggestions(connection, index)
