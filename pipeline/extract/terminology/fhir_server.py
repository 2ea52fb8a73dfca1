"""A FHIR terminology server, asked by its standard operations alone (f2o-110): `ConceptMap/$translate` from a code to a
concept of OHDSI's code system, and `CodeSystem/$lookup` for the Standard concepts of that one.

Source: https://hl7.org/fhir/R4/conceptmap-operation-translate.html and the same of R5; the FHIR to OMOP guide,
"Terminology Server API Utilization".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.extract.http.transport import Response
from pipeline.extract.terminology.service import (
    Replies,
    ServiceConnection,
    StandardConcepts,
    check_release,
    release_name,
)
from pipeline.warehouse.resolver_cache import AskedCode, ResolverAnswer

__all__ = ["FhirServer"]

#: ConceptMap.group.element.target.equivalence of R4 and .relationship of R5: the target means the same.
_SAME = frozenset({"equivalent", "equal"})
#: The target is broader than the code.
_BROADER = frozenset({"wider", "subsumes", "source-is-narrower-than-target"})
#: Issues with which servers answer that there is no such code, system or map; with 404 and 422 alone.
_UNKNOWN = frozenset({"not-found", "code-invalid"})


class FhirServer:
    """One code a call."""

    batch = 1

    def __init__(self, connection: ServiceConnection, standard: StandardConcepts) -> None:
        self._connection = connection
        self._settings = connection.settings
        self._standard = standard
        self._looked_up: dict[int, tuple[int, ...]] = {}
        self._release = ""

    def ask(self, codes: Sequence[AskedCode]) -> Replies:
        return Replies(tuple(self._translate(code) for code in codes), self._release or self._settings.release or "")

    def _translate(self, code: AskedCode) -> ResolverAnswer:
        none = ResolverAnswer(code.system, code.code, "none")
        document = self._call("ConceptMap/$translate", self._translation(code))
        if document is None:
            return none
        result = next((part.get("valueBoolean") for part in _parameters(document, "result")), None)
        if not isinstance(result, bool):
            raise self._connection.unreadable("the answer of $translate has no result")
        matches = list(self._matches(document)) if result else []
        exact = sorted({concept_id for concept_id, is_exact in matches if is_exact})
        if exact:
            targets = tuple(sorted({target for concept_id in exact for target in self._standard_of(concept_id)}))
            return ResolverAnswer(
                code.system, code.code, "exact" if targets else "none", tuple((target, None) for target in targets)
            )
        suggested = tuple((concept_id, None) for concept_id in sorted({concept_id for concept_id, _ in matches}))
        return ResolverAnswer(code.system, code.code, "suggestion", suggested) if suggested else none

    def _translation(self, code: AskedCode) -> list[dict[str, Any]]:
        is_r5 = self._settings.fhir_version == "R5"
        coding = {"system": code.system, "code": code.code}
        if self._settings.send_display and code.display:
            coding["display"] = code.display
        parameters: list[dict[str, Any]] = [
            {"name": "sourceCoding" if is_r5 else "coding", "valueCoding": coding},
            {"name": "targetSystem" if is_r5 else "targetsystem", "valueUri": self._settings.target_system},
        ]
        if self._settings.concept_map:
            parameters.append({"name": "url", "valueUri": self._settings.concept_map})
        return parameters

    def _matches(self, document: dict[str, Any]) -> Iterator[tuple[int, bool]]:
        """(concept id, whether it counts as the code's own) of the matches in OHDSI's code system."""
        counting = _SAME | (_BROADER if self._settings.broader else frozenset())
        for match in _parameters(document, "match"):
            relations = {
                str(part.get("valueCode")) for name in ("equivalence", "relationship") for part in _parts(match, name)
            }
            for part in _parts(match, "concept"):
                concept = part.get("valueCoding")
                if not isinstance(concept, dict) or concept.get("system") != self._settings.target_system:
                    continue
                concept_id = self._concept_id(concept.get("code"))
                self._name_release(concept.get("version"))
                yield concept_id, bool(relations) and relations <= counting

    def _standard_of(self, concept_id: int) -> tuple[int, ...]:
        """The concept itself where it is Standard, else those of its `Maps to`."""
        if concept_id not in self._looked_up:
            self._looked_up[concept_id] = (concept_id,) if self._standard([concept_id]) else self._look_up(concept_id)
        return self._looked_up[concept_id]

    def _look_up(self, concept_id: int) -> tuple[int, ...]:
        names = ("standard-concept", "Maps to")
        parameters = [
            {"name": "code", "valueCode": str(concept_id)},
            {"name": "system", "valueUri": self._settings.target_system},
            *({"name": "property", "valueCode": name} for name in names),
        ]
        document = self._call("CodeSystem/$lookup", parameters)
        if document is None:
            return ()
        for version in _parameters(document, "version"):
            self._name_release(version.get("valueString"))
        properties = list(_properties(document))
        if ("standard-concept", "S") in properties:
            return (concept_id,)
        return tuple(sorted({self._concept_id(value) for name, value in properties if name == "Maps to"}))

    def _call(self, operation: str, parameters: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The Parameters that an operation answers with; None where the server does not know the code."""
        body = {"resourceType": "Parameters", "parameter": parameters}
        kind = "application/fhir+json"
        answer = self._connection.post(operation, body, **{"Content-Type": kind, "Accept": kind})
        if _says_unknown(answer):
            return None
        if answer.status != 200:
            raise answer.error()
        document = answer.json()
        if document.get("resourceType") != "Parameters":
            raise self._connection.unreadable(
                f"the answer of {operation.partition('/')[2]} is not a Parameters resource"
            )
        return document

    def _concept_id(self, code: Any) -> int:
        """Another form says nothing: it is no "unknown", and not kept."""
        number = int(code) if isinstance(code, str) and re.fullmatch("[0-9]{1,10}", code) else 0
        if not 0 < number < 2**31:
            raise self._connection.unreadable(f"a code of {self._settings.target_system} is no concept id")
        return number

    def _name_release(self, named: Any) -> None:
        release = release_name(self._connection, named)
        check_release(self._connection, release, must_be_named=True)
        self._release = release or self._release


def _says_unknown(answer: Response) -> bool:
    codes = {issue.code for issue in answer.issues}
    return answer.status in (404, 422) and bool(codes) and codes <= _UNKNOWN


def _parameters(document: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    return _named(document.get("parameter"), name)


def _parts(parameter: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    return _named(parameter.get("part"), name)


def _named(found: Any, name: str) -> Iterator[dict[str, Any]]:
    for one in found if isinstance(found, list) else ():
        if isinstance(one, dict) and one.get("name") == name:
            yield one


def _properties(document: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for parameter in _parameters(document, "property"):
        names = [str(part.get("valueCode") or part.get("valueString")) for part in _parts(parameter, "code")]
        for part in _parts(parameter, "value"):
            value = part.get("valueCoding", {})
            code = value.get("code") if isinstance(value, dict) else None
            yield (names[0] if names else None), code or part.get("valueCode") or part.get("valueString")
