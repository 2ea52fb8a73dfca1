"""What a line's rows depend on apart from the line: mapping, code, settings, concepts that mappings name. One number a
resource type.

A worker process begins with `pipeline.load.worker`: all that it imports may decide rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path

import polars as pl

from pipeline.core.code_hash import code_hash, raw_hash
from pipeline.core.errors import LandingError
from pipeline.core.files import write_whole
from pipeline.core.identifier_secret import identifier_secret
from pipeline.core.settings import SiteSettings
from pipeline.load.old_settings import SiteFingerprints
from pipeline.publication.steps.crosswalk import read_crosswalk
from pipeline.publication.steps.vocabulary_uses import VocabularyMark
from pipeline.transform.concepts.answers import VocabularyAnswers, concept_details
from pipeline.transform.concepts.code_forms import CodeForms
from pipeline.transform.concepts.index import ConceptIndex
from pipeline.transform.mapping.mappings import Mappings, load_mappings
from pipeline.transform.mapping.targets import standard_of_targets
from pipeline.transform.plan import SiteMapping, resolver_of
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
    """Resource type → signed 64-bit fingerprint of mapping, code and settings; "" for unmapped types.

    A line counts as unchanged only under the fingerprint under which it was loaded. Of the vocabulary it has what the
    concepts that mappings name are there: what codes of lines are there is compared code by code
    (`pipeline.load.vocabulary_changes`).
    """
    common = "|".join(
        (
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
    named = _named_concepts(mappings, index)
    return {
        name: _signed_hash(common + mappings.fingerprint(name) + named.of(name) + own.get(name, "")) for name in types
    }


@dataclass(frozen=True)
class _NamedConcepts:
    """What the vocabulary has for the concepts that mappings name."""

    mappings: Mappings
    #: id, or `VOCABULARY:code` → what a row gets for it
    found: Mapping[int | str, str]

    def of(self, resource_type: str) -> str:
        """Of those that rows of a type can have."""
        named = self.mappings.concepts_of(resource_type)
        return repr([(name, self.found.get(name)) for name in sorted(named, key=str)])


def _named_concepts(mappings: Mappings, index: ConceptIndex) -> _NamedConcepts:
    fixed, coded = mappings.fixed_concepts, mappings.coded_concepts
    forms = _Forms(mappings.code_forms, repr(sorted(mappings.code_forms.of_vocabulary.items())))
    found = _found_concepts(index, tuple(sorted(fixed.items())), tuple(sorted(coded)), forms)
    return _NamedConcepts(mappings, found)


@dataclass(frozen=True)
class _Forms:
    """How else codes are written, compared by content."""

    forms: CodeForms = field(compare=False)
    content: str


@lru_cache(maxsize=16)  # the exports of a process are mapped by the same mappings and release
def _found_concepts(
    index: ConceptIndex, fixed: tuple[tuple[int, str], ...], coded: tuple[str, ...], forms: _Forms
) -> dict[int | str, str]:
    used: dict[int | str, int] = {
        named: concept.use_concept_id for named, concept in index.verify_fixed(dict(fixed)).items()
    }
    used.update(standard_of_targets(coded, index, forms.forms).items())
    details = concept_details(index, pl.Series(sorted(set(used.values())), dtype=pl.Int64))
    detail_of = dict(details.iter_rows())
    return {named: f"{concept_id} {detail_of.get(concept_id, '')}" for named, concept_id in used.items()}


@dataclass(frozen=True)
class SiteRules:
    """By what a site's lines become rows today."""

    mappings: Mappings
    index: ConceptIndex
    #: as `fingerprints` makes them
    fingerprints: dict[str, int]
    #: which vocabulary is asked, and how
    mark: VocabularyMark

    @property
    def answers(self) -> VocabularyAnswers:
        """Asks the vocabulary as a worker does."""
        resolver = partial(resolver_of, self.mappings)
        return VocabularyAnswers(self.index, frozenset(self.mappings.vocabulary_priority), resolver)


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
        resolved=cached_answers(settings.home, site.resolvers, index.content_hash, mappings.systems.canonical),
    )
    mark = VocabularyMark(index.release, index.content_hash, index.local_hash, _rules_hash(mappings, settings.home))
    return SiteRules(mappings, index, fingerprints(runtime, site, mappings, index), mark)


def _rules_hash(mappings: Mappings, home: Path) -> str:
    """Of what `resolver_of` is given, and of the code."""
    asked_by = (mappings.code_systems, mappings.vocabulary_priority, mappings.unit_aliases)
    rules = hashlib.sha256(repr([sorted(part.items()) for part in asked_by]).encode())
    rules.update(mappings.code_rules)
    rules.update(rows_code_hash(home).encode())
    return rules.hexdigest()[:16]


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
