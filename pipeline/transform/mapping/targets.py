"""How a mapping names a concept: by its id, by vocabulary and code, or by vocabulary and name.

By name where codes are nobody's knowledge: OMOP's concepts of countries have the numbers of OpenStreetMap's relations as
codes. Not here: ids, and which of several alternatives counts (`plan.Worker.target`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated

from pydantic import Field

from pipeline.transform.concepts.code_forms import NO_FORMS, CodeForms
from pipeline.transform.concepts.index import ConceptIndex

__all__ = ["Target", "missing_targets", "parted_target", "standard_of_targets"]

_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9 ]*)(?::(\S+)|=(\S.*))")

#: A concept by its id, by vocabulary and code (`SNOMED:410516002`), or by vocabulary and name (`OSM=Germany`).
Target = int | Annotated[str, Field(pattern=_NAMED.pattern)]


def parted_target(target: str) -> tuple[str, str | None, str | None]:
    """Vocabulary, code and name: a target that is no id has either. ValueError for what is no target."""
    match = _NAMED.fullmatch(target)
    if match is None:
        raise ValueError("expected VOCABULARY:code or VOCABULARY=name")
    vocabulary, code, name = match.groups()
    return vocabulary, code, name


def standard_of_targets(targets: Iterable[str], index: ConceptIndex, forms: CodeForms = NO_FORMS) -> dict[str, int]:
    """Targets by code or name → their standard concepts, of those that have one. `forms`: how else codes are written."""
    by_code: dict[tuple[str, str], str] = {}
    by_name: dict[tuple[str, str], str] = {}
    for target in targets:
        vocabulary, code, name = parted_target(target)
        if code is not None:
            by_code[vocabulary, code] = target
        elif name is not None:
            by_name[vocabulary, name] = target
    known = index.standard_of_codes(chain(*forms.spellings(by_code).values()))
    found = {by_code[key]: concept_id for key, concept_id in forms.mapped(by_code, known).items()}
    return found | {by_name[key]: concept_id for key, concept_id in index.standard_of_names(by_name).items()}


def missing_targets(targets: Mapping[str, str], index: ConceptIndex, forms: CodeForms = NO_FORMS) -> list[str]:
    """What to say of targets by code or name (→ what asks for them) that have no Standard concept: a sentence for each code.

    Of names, which a map lists with alternatives, one for each vocabulary that has none of them: it is not loaded.
    """
    found = standard_of_targets(targets, index, forms)
    sentences: list[str] = []
    names: dict[str, list[str]] = {}
    for target, where in targets.items():
        vocabulary, code, _ = parted_target(target)
        if code is None:
            names.setdefault(vocabulary, []).append(target)
        elif target not in found:
            sentences.append(
                f"{where}: {vocabulary} {code} has no Standard concept in vocabulary {index.release}; 0 is used instead."
            )
    sentences += [
        f"{targets[of_vocabulary[0]].partition(' ')[0]}: none of {len(of_vocabulary)} names has a Standard concept of {name} in "
        f"vocabulary {index.release}; 0 is used instead."
        for name, of_vocabulary in names.items()
        if found.keys().isdisjoint(of_vocabulary)
    ]
    return sentences
