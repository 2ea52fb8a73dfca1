"""docs/conformance.md: how the project stands to each statement of the FHIR-to-OMOP guide, and the tests that show it.

`python -m tools.conformance --results FILE…` makes the page from `requirements.yaml` and the files that
`pytest --requirements-json FILE` wrote (`make conformance` does both). The page names no times and no numbers of runs,
so that it changes only with what it says.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.core.errors import ConfigurationError, EpicOmopError

__all__ = ["Requirement", "Results", "load_requirements", "merged", "render", "test_name"]

#: Requirement id → test → outcome as pytest calls it.
Results = Mapping[str, Mapping[str, str]]

_FILE = Path(__file__).with_name("requirements.yaml")
_PAGE = Path("docs/conformance.md")
#: Characters of a line of text.
_LINE = 120
_PARAMETERS = re.compile(r"\[.*\]$", re.DOTALL)
#: Outcomes from the best to the worst: of a test with several runs the worst counts.
_OUTCOMES = ("passed", "skipped", "failed")
_STATUS_WORDS = {"met": "met", "departed": "**departed**", "not_applicable": "not applicable"}


class Requirement(BaseModel):
    """One statement of the guide."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    #: Its words of obligation.
    level: str
    #: What it asks, in a few words.
    asks: str
    status: Literal["met", "departed", "not_applicable"]
    #: How it is met, or why not.
    why: str


def load_requirements(file: Path = _FILE) -> tuple[Requirement, ...]:
    """The statements in the guide's order. Raises ConfigurationError."""
    try:
        return tuple(Requirement.model_validate(item) for item in yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, ValidationError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file} cannot be used: {error}") from error


def test_name(node_id: str) -> str:
    """A pytest node id as the page names it: golden cases by their name, other tests without their parameters."""
    golden = re.search(r"test_golden\.py::test_golden\[(.*)\]$", node_id)
    if golden:
        return f"golden case {golden[1]}"
    return _PARAMETERS.sub("", node_id).removeprefix("tests/")


test_name.__test__ = False  # type: ignore[attr-defined]  # pytest collects what tests import under such a name


def merged(found: Iterable[Results]) -> dict[str, dict[str, str]]:
    """Results of several runs as one, tests by the names that the page uses."""
    together: dict[str, dict[str, str]] = {}
    for results in found:
        for requirement, tests in results.items():
            of_requirement = together.setdefault(requirement, {})
            for node_id, outcome in tests.items():
                name = test_name(node_id)
                of_requirement[name] = max(of_requirement.get(name, "passed"), outcome, key=_OUTCOMES.index)
    return together


def render(requirements: Sequence[Requirement], results: Results) -> str:
    """The page."""
    counts = Counter(requirement.status for requirement in requirements)
    lines = [
        "# Conformance",
        "",
        "How epic-omop stands to the numbered statements of the HL7 guide *FHIR to OMOP*, 2.0.0-ballot. The statements",
        "are described in a few words here; the guide has their full text. Made by `make conformance` from",
        "`tools/requirements.yaml` and the results of the tests that carry a statement's id.",
        "",
        (
            f"{len(requirements)} statements: {counts['met']} met, {counts['departed']} departed from in whole or in"
            f" part, {counts['not_applicable']} not applicable."
        ),
        "",
    ]
    for requirement in requirements:
        lines += [
            f"## {requirement.id}: {_STATUS_WORDS[requirement.status]}",
            "",
            *wrap(f"*{requirement.level}.* {requirement.asks}", _LINE, break_on_hyphens=False),
            "",
            *wrap(requirement.why, _LINE, break_on_hyphens=False),
            "",
        ]
        tests = results.get(requirement.id, {})
        lines += [f"- `{name}`: {outcome}" for name, outcome in sorted(tests.items())]
        lines += [""] if tests else []
    return "\n".join(lines).rstrip("\n") + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page. Exit code 1 where a test of a statement did not pass."""
    parser = argparse.ArgumentParser(prog="python -m tools.conformance", description=__doc__)
    parser.add_argument("--results", nargs="+", type=Path, required=True, help="files of pytest --requirements-json")
    parser.add_argument("--out", type=Path, default=_PAGE, help=f"the page to write ({_PAGE})")
    options = parser.parse_args(arguments)
    try:
        requirements = load_requirements()
        results = merged(json.loads(file.read_text(encoding="utf-8")) for file in options.results)
    except (EpicOmopError, OSError, json.JSONDecodeError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    options.out.write_text(render(requirements, results), encoding="utf-8")
    missed = sorted({name for tests in results.values() for name, outcome in tests.items() if outcome != "passed"})
    sys.stdout.write(f"{options.out} is written; {len(missed)} tests of it did not pass.\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
