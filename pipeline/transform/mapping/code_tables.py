"""What `concept_maps/code_systems.csv` and `code_forms.yaml` say: which vocabulary a system is, what else it is called,
where its codes are looked up when that vocabulary does not have them, and how sources write them.

Not here: what spellings of one system have in common (`systems`), and what a form is (`pipeline.transform.concepts.code_forms`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from pipeline.transform.concepts.code_forms import CodeForms, VocabularyForms
from pipeline.transform.mapping.sources import MappingProblem, Row, line_of, node_at, plain
from pipeline.transform.mapping.systems import SystemNames

__all__ = ["FallBack", "aliases", "code_forms", "code_systems", "fall_backs"]

#: Several purposes in `fall_back_for`.
_AND = "|"


@dataclass(frozen=True)
class FallBack:
    """The vocabulary in which codes of a system are looked up that its own does not have."""

    vocabulary_id: str
    #: keys of vocabulary_priority.yaml; none: any
    purposes: frozenset[str] = frozenset()

    def is_for(self, purpose: str) -> bool:
        return not self.purposes or purpose in self.purposes


def aliases(rows: Iterable[Row], problems: list[MappingProblem]) -> dict[str, str]:
    """Other name → the system that it stands for. A row is either a system or another name of one."""
    found = {}
    for row in rows:
        if ("vocabulary_id" in row.values) == ("alias_of" in row.values):
            problems.append(row.problem("needs either vocabulary_id or alias_of"))
        elif "alias_of" in row.values:
            found[row.values["system"]] = row.values["alias_of"]
    return found


def code_systems(rows: Iterable[Row], systems: SystemNames) -> dict[str, str]:
    """System → vocabulary_id."""
    own = [row.values for row in rows if "vocabulary_id" in row.values]
    return {systems.canonical(values["system"]): values["vocabulary_id"] for values in own}


def fall_backs(
    rows: Iterable[Row], systems: SystemNames, purposes: Iterable[str], problems: list[MappingProblem]
) -> dict[str, FallBack]:
    """System → where else its codes are looked up."""
    known = set(purposes)
    found = {}
    for row in rows:
        vocabulary = row.values.get("fall_back")
        named = frozenset(filter(None, row.values.get("fall_back_for", "").split(_AND)))
        if named and vocabulary is None:
            problems.append(row.problem("fall_back_for needs a fall_back"))
        elif unknown := sorted(named - known):
            problems.append(row.problem(f"{unknown[0]} is not a key of vocabulary_priority.yaml"))
        elif vocabulary is not None:
            found[systems.canonical(row.values["system"])] = FallBack(vocabulary, named)
    return found


def code_forms(nodes: Mapping[str, yaml.Node], problems: list[MappingProblem]) -> CodeForms:
    found = {}
    for vocabulary, node in nodes.items():
        try:
            found[vocabulary] = VocabularyForms.model_validate(plain(node))
        except ValidationError as error:
            for problem in error.errors(include_input=False):
                message = problem["msg"].removeprefix("Value error, ")
                name = ".".join(map(str, (vocabulary, *problem["loc"])))
                problems.append(MappingProblem(*line_of(node_at(node, problem["loc"])), f"{name}: {message}"))
    return CodeForms(found)
