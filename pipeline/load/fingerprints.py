"""What a line's rows depend on apart from the line: mapping, vocabulary, code, settings. One number a resource type.

A worker process begins with `pipeline.load.worker`: all that it imports may decide rows.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.core.code_hash import code_hash, raw_hash
from pipeline.core.errors import LandingError
from pipeline.core.files import write_whole
from pipeline.core.identifier_secret import identifier_secret
from pipeline.core.settings import SiteSettings
from pipeline.load.old_settings import SiteFingerprints
from pipeline.publication.steps.crosswalk import read_crosswalk
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.mapping.mappings import Mappings, load_mappings
from pipeline.transform.plan import SiteMapping
from pipeline.warehouse.local_map.overlay import with_local_map
from pipeline.warehouse.resolver_cache import cached_answers
from pipeline.warehouse.runtime import Runtime
from pipeline.warehouse.vocabulary import ensure_index

__all__ = ["SiteRules", "fingerprints", "rows_code_hash", "site_fingerprints", "site_mapping", "site_rules"]

_ROOT = Path(__file__).resolve().parents[2]
_ENTRY = "pipeline.load.worker"
#: Modules that decide which lines there are, what they say, and which facts they are given. What these import stores and
#: counts.
_OF_LINES = ("pipeline.landing.bundles", "pipeline.landing.deletions", "pipeline.load.deletions", "pipeline.load.facts")
#: Facts that this code reads.
_DATA = ("omop_schema/cdm_v5_4_fields.csv", "omop_schema/cdm_v5_5_fields.csv", "pipeline/sql_on_fhir/r4_elements.csv")
#: Below the home: the hash of all files of the project, and that of the code.
_KEPT = "code_hash"


def site_mapping(site: SiteSettings) -> SiteMapping:
    """What the transform stage needs to know of a site."""
    return SiteMapping(site.name, site.time_zone, tuple(site.text_source_value_types), site.max_line_bytes)


def fingerprints(runtime: Runtime, site: SiteSettings, mappings: Mappings, index: ConceptIndex) -> dict[str, int]:
    """Resource type → signed 64-bit fingerprint of mapping, vocabulary, code and settings; "" for unmapped types.

    A line counts as unchanged only under the fingerprint under which it was loaded.
    """
    common = "|".join(
        (
            index.content_hash,
            index.local_hash,
            rows_code_hash(runtime.settings.home),
            site.time_zone,
            runtime.settings.time_zone,
            runtime.settings.cdm_version,
            ",".join(sorted(site.text_source_value_types)),
            str(site.max_line_bytes),
            hashlib.sha256(b"identifiers" + identifier_secret(runtime.settings)).hexdigest(),
        )
    )
    types = ["", *mappings.resources, *mappings.unmapped_types]
    # A patient who is no longer the same as another one needs a row of their own again.
    patients = read_crosswalk(runtime.settings.person_crosswalk, runtime.settings.surrogate_salt).rows()
    own = {"Patient": str(sorted(patients)) if patients else ""}
    return {name: _signed_hash(common + mappings.fingerprint(name) + own.get(name, "")) for name in types}


@dataclass(frozen=True)
class SiteRules:
    """By what a site's lines become rows today."""

    mappings: Mappings
    index: ConceptIndex
    #: as `fingerprints` makes them
    fingerprints: dict[str, int]


def site_rules(runtime: Runtime, site: SiteSettings) -> SiteRules:
    """Mappings and vocabulary of a site as they are now. Raises MappingError, VocabularyError."""
    settings = runtime.settings
    index = ensure_index(
        runtime.url, vocab_schema=settings.vocab_schema, etl_schema=settings.etl_schema, home=settings.home
    )
    mappings = load_mappings(settings.mappings, site.name, site.mapping, settings.site_mappings_folder)
    index = with_local_map(
        runtime.url,
        index,
        site.name,
        mappings,
        vocab_schema=settings.vocab_schema,
        etl_schema=settings.etl_schema,
        resolved=cached_answers(settings.home, site.resolvers, index.content_hash),
    )
    return SiteRules(mappings, index, fingerprints(runtime, site, mappings, index))


def site_fingerprints(runtime: Runtime, site: SiteSettings) -> SiteFingerprints:
    """The fingerprints that a load of the site has today. Raises MappingError, VocabularyError."""
    rules = site_rules(runtime, site)
    return SiteFingerprints(rules.fingerprints, frozenset(rules.mappings.resources))


def _signed_hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


@cache
def rows_code_hash(home: Path) -> str:
    """Hash of the code that turns lines into rows, and of the data that it reads. A comment changes nothing.

    It takes a second or two, and is kept in the home until a file of the project changes.
    """
    data = [_ROOT / name for name in _DATA]
    key, kept = raw_hash(_ROOT, data), home / _KEPT
    with suppress(OSError, ValueError):
        known_key, found = kept.read_text(encoding="ascii").split()
        if known_key == key:
            return found
    found = _compute(key)
    with suppress(LandingError):  # a home that cannot be written is reported by the load
        write_whole(kept, f"{key} {found}\n".encode())
    return found


@cache
def _compute(_key: str) -> str:
    return code_hash(_ROOT, [_ENTRY], alone=_OF_LINES, data=[_ROOT / name for name in _DATA])
