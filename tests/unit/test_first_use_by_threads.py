"""What several threads use first at the same moment must be complete by then. Each try is a fresh process: within one,
only the first use counts. A crash in C ends the process by a signal and fails the test with its stack."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Four threads wait for each other and then read the process's first page, with threads switched every 0.1 ms.
_FIRST_PAGES = """
import faulthandler, sys, threading
faulthandler.enable()
sys.setswitchinterval(1e-4)
from pipeline.fhir.search_page import parse_page
entry = b'{"resource": {"resourceType": "Patient", "id": "p"}, "search": {"mode": "match"}}'
outcome = (b'{"resource": {"resourceType": "OperationOutcome", "issue": [{"severity": "warning", "code": "x",'
           b' "details": {"coding": [{"code": "4101"}]}}]}, "search": {"mode": "outcome"}}')
page = b'{"resourceType": "Bundle", "entry": [%s, %s], "link": [{"relation": "next", "url": "u"}]}' % (entry, outcome)
ready, read = threading.Barrier(4), []
def first():
    ready.wait()
    read.append(parse_page(page, "The test"))
threads = [threading.Thread(target=first) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert [len(one.resources) for one in read] == [1] * 4, read
"""

#: The hole in msgspec made wide: while the annotation is evaluated, the Struct is known and not yet filled.
_SLOW_STRUCT = """
import faulthandler, sys, threading, time
faulthandler.enable()
import msgspec
def slow():
    time.sleep(0.3)
    return int
class Inner(msgspec.Struct):
    a: "slow()"
class Outer(msgspec.Struct):
    inner: Inner
decoder = msgspec.json.Decoder(Outer)
failed = []
def first(wait):
    time.sleep(wait)
    try:
        assert decoder.decode(b'{"inner": {"a": 1}}').inner.a == 1
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=first, args=(wait,)) for wait in (0, 0.1, 0.2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
"""


@pytest.mark.parametrize("attempt", range(6))
def test_threads_that_read_the_first_page_together(attempt: int) -> None:
    _run(_FIRST_PAGES)


def test_a_decoder_that_was_built_before_serves_all_threads() -> None:
    _run(_SLOW_STRUCT)


def _run(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"ended with {done.returncode}\n{done.stderr}"


def test_decoders_of_msgspec_are_built_at_import() -> None:
    """`msgspec.json.decode(…, type=…)` and the like build what they need at the first call, in whatever thread that is."""
    found = []
    for file in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "omop_schema").rglob("*.py")]):
        tree = ast.parse(file.read_text())
        inside = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in _FIRST_CALL_BUILDS or (
                name.startswith("msgspec.") and name.endswith("Decoder") and id(node) in inside
            ):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno} {name}")
    assert found == []


_FIRST_CALL_BUILDS = {
    "msgspec.json.decode",
    "msgspec.msgpack.decode",
    "msgspec.yaml.decode",
    "msgspec.toml.decode",
    "msgspec.convert",
}
