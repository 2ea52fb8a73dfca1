"""Any sequence of exports of groups, in any order, interrupted anywhere, ends where loading the last state would.

The world of `test_sequences`, spread over two groups whose exports are complete: what a group's newest export does not
hold is not there any more, unless another group holds it. Both policies are `delete`. What the warehouse then says of
its rows, derived ones included, is compared with a warehouse that was empty before it loaded what is left, at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.settings import SiteSettings
from pipeline.landing.store import LandedExport, LandingDraft
from pipeline.load import replay
from pipeline.publication import publish
from pipeline.warehouse.runtime import Runtime
from tests.integration.support import Warehouse
from tests.integration.test_sequences import RANDOM_KEYS, VERSIONS, Export, History, Line, _is_good, files, resource
from tests.property_examples import histories
from tests.warehouse_content import Content, warehouse_content

TYPES = ("Patient", "Encounter", "Observation", "Condition", "MedicationRequest", "Medication")


@dataclass(frozen=True)
class Taken:
    """An export of a group, and what the site says in it that was deleted."""

    group: str
    lines: Export
    deleted: tuple[Line, ...] = ()

    def __repr__(self) -> str:
        words = [f"{line.resource_id}:{line.version}" for line in self.lines]
        return f"{self.group} {' '.join(words)}" + "".join(f" -{line.resource_id}" for line in self.deleted)


def left(exports: Sequence[Taken]) -> Export:
    """The newest good version of everything that is still there, and whose person is."""
    versions: dict[tuple[str, str], str] = {}
    held: dict[tuple[str, str], dict[str, int]] = {}
    newest: dict[str, int] = {}
    for place, export in enumerate(exports):
        newest[export.group] = place
        for line in export.lines:
            held.setdefault(line.key, {})[export.group] = place
            if _is_good(line):
                versions[line.key] = line.version
        for line in export.deleted:
            versions[line.key] = "deleted"
    there = {key for key, groups in held.items() if any(place == newest[group] for group, place in groups.items())}
    last = [Line(*key, version) for key, version in versions.items() if key in there and version != "deleted"]
    persons = {line.resource_id for line in last if line.resource_type == "Patient"}
    return tuple(line for line in last if line.resource_type in ("Patient", "Medication") or line.person in persons)


#: Where a load is interrupted: a step of publication, or what follows it.
STEPS = (
    (publish, "decide"),
    (publish.former_rows, "remove_former_rows"),
    (publish.references, "replace_references"),
    (publish.vanished, "forget"),
    (publish.derived_rows, "refresh"),
    (publish, "write_members"),
    (publish, "_record"),
    (replay, "_replay"),
)


class Interrupted(Exception):
    """What no code expects."""


@contextmanager
def interruption(step: int | None) -> Iterator[None]:
    """One call of a step is done, and then the load ends."""
    if step is None:
        yield
        return
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def done_and_over(*arguments: Any, **named: Any) -> Any:
        if name != "_replay":
            real(*arguments, **named)
        raise Interrupted

    with mock.patch.object(owner, name, done_and_over):
        yield


@dataclass
class GroupHistory(History):
    """Loads exports of groups under policy `delete`."""

    def content(self) -> Content:
        with self.warehouse.runtime.connect() as connection:
            return warehouse_content(connection, state=False)

    def after_groups(
        self, exports: Sequence[Taken], order: Sequence[int], interruptions: Sequence[int | None] = ()
    ) -> Content:
        self._clear()
        landed = [self._land(export) for export in exports]
        for number, place in enumerate(order):
            step = interruptions[number] if number < len(interruptions) else None
            with interruption(step):
                try:
                    self.warehouse.ingest(landed[place])
                except Interrupted:
                    pass
                else:
                    continue
            self.warehouse.ingest(landed[place])
        return self.content()

    def _land(self, export: Taken) -> LandedExport:
        bundle = {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [
                {"request": {"method": "DELETE", "url": f"{line.resource_type}/{line.resource_id}"}}
                for line in export.deleted
            ],
        }
        finish = LandingDraft.finish

        def with_deletions(draft: LandingDraft, kind: str, when: Any, found: Any, **_: Any) -> LandedExport:
            if not export.deleted:
                return finish(draft, kind, when, found)
            number = len(found) + 1
            with draft.writer(number, "Bundle", "deleted") as writer:
                writer.write(orjson.dumps(bundle) + b"\n")
                kept = draft.keep(writer, number, "Bundle")
            return finish(draft, kind, when, found, deleted=(kept,))

        with mock.patch.object(LandingDraft, "finish", with_deletions):
            return self.warehouse.land(files(export.lines), group=export.group, complete=True)


@pytest.fixture(scope="module")
def history(module_warehouse: Warehouse) -> GroupHistory:
    site = SiteSettings(name="one", vanished="delete", left_group="delete", empty_when_missing=TYPES)
    runtime = module_warehouse.runtime
    settings = runtime.settings.model_copy(update={"sites": {"one": site}})
    return GroupHistory(replace(module_warehouse, runtime=Runtime(settings, runtime.clock)))


def agrees(
    history: GroupHistory,
    exports: Sequence[Taken],
    order: Sequence[int],
    interruptions: Sequence[int | None] = (),
) -> None:
    reached = history.after_groups(exports, order, interruptions)
    expected = history.after_groups([Taken("fresh", left(exports))], [0])
    assert reached == expected


lines = st.builds(
    lambda key, version: Line(key[0], key[1], version), st.sampled_from(RANDOM_KEYS), st.sampled_from(VERSIONS)
)
taken = st.builds(
    Taken,
    st.sampled_from(("g", "g", "h")),
    st.lists(lines, max_size=8).map(tuple),
    st.lists(st.sampled_from(RANDOM_KEYS).map(lambda key: Line(*key, "deleted")), max_size=1).map(tuple),
)


@histories(6)
@given(exports=st.lists(taken, min_size=1, max_size=4), data=st.data())
def test_any_history_of_groups_ends_in_what_is_left(
    history: GroupHistory, exports: list[Taken], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(exports))))
    steps = st.one_of(st.none(), st.integers(0, len(STEPS) - 1))
    interruptions = data.draw(st.lists(steps, min_size=len(exports), max_size=len(exports)))
    agrees(history, exports, order, interruptions)


def world(*exports: str) -> list[Taken]:
    """Each export as text: the group, then `p1 o1:other -o2`; what begins with - is deleted."""
    found = []
    for export in exports:
        group, *words = export.split()
        named = [resource(*word.split(":")) for word in words if not word.startswith("-")]
        gone = [resource(word[1:]) for word in words if word.startswith("-")]
        found.append(Taken(group, tuple(named), tuple(gone)))
    return found


@pytest.mark.deep
@pytest.mark.parametrize(
    ("exports", "order"),
    [
        (world("g p1 o1", "g p1"), (0, 1)),
        (world("g p1 o1", "g p1"), (1, 0)),
        (world("g p1 o1", "g p1", "g p1 o1"), (0, 1, 2)),
        (world("g p1 o1", "g p1", "g p1 o1"), (0, 2, 1)),
        (world("g p1 o1", "h p1 o1:other", "g p1"), (0, 1, 2)),
        (world("g p1 o1", "h p1 o1:other", "g p1"), (2, 0, 1)),
        (world("h p1 o1", "g p1 o1:other", "g p1"), (1, 2, 0)),
        (world("h p1 o1", "g p1 o1:other", "g p1", "h p1"), (1, 2, 0, 3)),
        (world("g p1 o1 e1", "h p1 e1", "g"), (0, 1, 2)),
        (world("g p1 o1 c1 m1 med e1", "g"), (0, 1)),
        (world("g p1 o1 c1 m1 med e1", "g p1 m1 c1"), (0, 1)),
        (world("g p1 m1 med", "g p1 m1:other"), (0, 1)),
        (world("g p1 m1 med", "g p1 m1:other"), (1, 0)),
        (world("g p1 med", "h p1 m1", "g p1"), (2, 1, 0)),
        (world("g p1 med m1", "h p1", "g p1"), (2, 1, 0)),
        (world("g p1 o1", "g p1 -o1"), (1, 0)),
        (world("g p1 o1", "g p1 -o1", "g p1 o1"), (1, 0, 2)),
        (world("g p1 o1", "g p1 o1 -p1"), (0, 1)),
        (world("g p1 e1 f1 q1", "g p1 f1 q1"), (0, 1)),
        (world("g p1 e1 f1 q1", "g p1 e1 q1"), (0, 1)),
        (world("g p1 p3 o3", "g p1 o3"), (0, 1)),
        (world("g p1 p3 o3", "g p3 o3"), (0, 1)),
        (world("g p1 p3 o3", "g p1"), (0, 1)),
        (world("g p1 o1", "g o1", "g p1 o1"), (0, 1, 2)),
        (world("g p1 o1", "g o1", "h p1"), (0, 1, 2)),
        (world("g p1 o1", "g p1", "g p1 o1:broken"), (0, 1, 2)),
        (world("g p1 o1", "g p1", "g p1 o1:broken"), (0, 2, 1)),
        (world("g p1 c1 e1", "g p1 c1"), (1, 0)),
    ],
)
def test_histories_of_groups_that_are_easily_got_wrong(
    history: GroupHistory, exports: list[Taken], order: tuple[int, ...]
) -> None:
    agrees(history, exports, order)
