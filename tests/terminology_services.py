"""OMOPHub and a FHIR terminology server as their documentation describes them, over HTTP on loopback, with faults.

Forms: `POST fhir/resolve/batch` of OMOPHub's API reference and of the package omophub 1.9; `ConceptMap/$translate` and
`CodeSystem/$lookup` of FHIR R4 and R5, and the examples of the FHIR to OMOP guide.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["OHDSI", "Reply", "Seen", "Services", "omophub_concept", "resolution", "running_services"]

OHDSI = "https://fhir-terminology.ohdsi.org"


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any
    raw: bytes


@dataclass(frozen=True)
class Reply:
    """An answer in place of the service's own."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_seconds: float = 0


def omophub_concept(concept_id: int, code: str) -> dict[str, Any]:
    return {
        "concept_id": concept_id,
        "concept_name": "a concept",
        "concept_code": code,
        "vocabulary_id": "SNOMED",
        "domain_id": "Condition",
        "concept_class_id": "Clinical Finding",
        "standard_concept": "S",
    }


def resolution(source_code: str, target: int, kind: str = "mapped", **more: Any) -> dict[str, Any]:
    return {
        "resolution": {
            "vocabulary_id": "SNOMED",
            "source_concept": omophub_concept(1, source_code),
            "standard_concept": omophub_concept(target, "t"),
            "mapping_type": kind,
            "target_table": "condition_occurrence",
            "domain_resource_alignment": "not_checked",
            **more,
        }
    }


@dataclass
class Services:
    """Both services at one address: `/v1` and `/fhir`."""

    #: (system, code) → what OMOPHub's batch has beside `input`
    omophub: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    #: (system, code) → matches (relation, concept id)
    translations: dict[tuple[str, str], list[tuple[str, str]]] = field(default_factory=dict)
    #: concept id → (standard-concept, ids of `Maps to`)
    concepts: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    release: str | None = "2025.2"
    #: what the next requests get instead
    faults: list[Callable[[Seen], Reply | None]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0

    @property
    def omophub_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def fhir_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/fhir"

    def answer(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        if self.faults:
            fault = self.faults.pop(0)(seen)
            if fault is not None:
                return fault
        if seen.path == "/v1/fhir/resolve/batch":
            return self._batch(seen.body["codings"])
        parameters = {(one["name"]): one for one in seen.body["parameter"]}
        if seen.path == "/fhir/ConceptMap/$translate":
            return self._translate(parameters)
        if seen.path == "/fhir/CodeSystem/$lookup":
            return self._look_up(parameters["code"]["valueCode"])
        return Reply(404, {"success": False})

    def _batch(self, codings: list[dict[str, str]]) -> Reply:
        if not 0 < len(codings) <= 100:
            return Reply(400, {"success": False, "error": {"code": "validation_error", "message": "1 to 100"}})
        unknown = {"error": {"code": "concept_not_found", "message": "no such concept"}}
        results = [
            {"input": coding, **self.omophub.get((coding["system"], coding["code"]), unknown)} for coding in codings
        ]
        resolved = sum("resolution" in result for result in results)
        summary = {"total": len(results), "resolved": resolved, "failed": len(results) - resolved}
        meta = {"request_id": "1", **({"vocab_release": self.release} if self.release else {})}
        return Reply(200, {"success": True, "data": {"results": results, "summary": summary}, "meta": meta})

    def _translate(self, parameters: dict[str, dict[str, Any]]) -> Reply:
        is_r5 = "sourceCoding" in parameters
        coding = (parameters.get("sourceCoding") or parameters["coding"])["valueCoding"]
        target = (parameters.get("targetSystem") or parameters["targetsystem"])["valueUri"]
        matches = self.translations.get((coding["system"], coding["code"]), [])
        found: list[dict[str, Any]] = [{"name": "result", "valueBoolean": bool(matches)}]
        for relation, concept_id in matches:
            concept = {"system": target, "code": concept_id, **({"version": self.release} if self.release else {})}
            found.append(
                {
                    "name": "match",
                    "part": [
                        {"name": "relationship" if is_r5 else "equivalence", "valueCode": relation},
                        {"name": "concept", "valueCoding": concept},
                    ],
                }
            )
        return Reply(200, {"resourceType": "Parameters", "parameter": found})

    def _look_up(self, concept_id: str) -> Reply:
        if concept_id not in self.concepts:
            issue = {"severity": "error", "code": "not-found"}
            return Reply(404, {"resourceType": "OperationOutcome", "issue": [issue]})
        standard, maps_to = self.concepts[concept_id]
        properties = [("standard-concept", {"valueCode": standard}), *(("Maps to", _coding(one)) for one in maps_to)]
        parameters = [
            {"name": "version", "valueString": self.release},
            *(
                {"name": "property", "part": [{"name": "code", "valueCode": name}, {"name": "value", **value}]}
                for name, value in properties
            ),
        ]
        return Reply(200, {"resourceType": "Parameters", "parameter": parameters})


def _coding(code: str) -> dict[str, Any]:
    return {"valueCoding": {"code": code}}


@contextmanager
def running_services() -> Iterator[Services]:
    services = Services()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            names = {name.lower(): value for name, value in self.headers.items()}
            reply = services.answer(Seen(self.path, names, json.loads(raw), raw))
            time.sleep(reply.after_seconds)
            body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    services.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield services
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
