"""`epic-omop manifest`: what is read and what is filled, as JSON."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.commands.terminal import document

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    app.command()(manifest)


def manifest(
    site: Annotated[str, typer.Option("--site", help="With this site's options and own mappings.")] = "",
) -> None:
    """Print what the transformation reads and which OMOP tables it fills, as JSON for machines.

    Example: epic-omop manifest --site north
    """
    import orjson

    from pipeline.commands.site_names import site_of_mappings
    from pipeline.core.settings import load_settings
    from pipeline.quality.manifest import manifest as made
    from pipeline.transform.mapping.mappings import load_mappings

    settings = load_settings()
    options = site_of_mappings(settings, site).mapping if site else None
    mappings = load_mappings(settings.mappings, site or None, options, settings.site_mappings_folder)
    document(
        orjson.dumps(made(mappings, site or None, settings.cdm_version), option=orjson.OPT_INDENT_2).decode() + "\n"
    )
