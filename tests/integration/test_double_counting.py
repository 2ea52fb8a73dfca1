"""Of the records of one exposure the most definite ones count, whichever night, file and order they came in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import WarehouseError
from pipeline.core.mapping_options import MappingOptions
from pipeline.core.settings import SiteSettings
from pipeline.erasure.run import erasing
from pipeline.load import load as loading
from pipeline.load.remap import remap
from pipeline.load.replay import replay_dead_letters
from pipeline.publication.steps import bulk
from pipeline.quality.overlaps import overlapping_exposures
from pipeline.quality.report import load_report
from pipeline.warehouse.runtime import Runtime
from tests.databases import empty
from tests.integration import medication_world
from tests.integration.medication_world import rows_of
from tests.integration.support import Warehouse
from tests.integration.worlds import Night, night
from tests.property_examples import histories
from tests.warehouse_content import Content, differences, warehouse_content

TYPES = tuple(dict.fromkeys(medication_world.TYPES.values()))


@dataclass
class Nights:
    """Loads nights of one world into one database, which it empties first."""

    warehouse: Warehouse

    def with_option(self, option: str) -> Nights:
        site = SiteSettings(
            name="one",
            vanished="delete",
            left_group="delete",
            empty_when_missing=TYPES,
            mapping=MappingOptions(double_counting=option),  # type: ignore[arg-type] # as sites.yaml has it
        )
        runtime = self.warehouse.runtime
        settings = runtime.settings.model_copy(update={"sites": {"one": site}})
        folder = self.warehouse.folder / option
        folder.mkdir(exist_ok=True)
        number = sum(1 for _ in folder.iterdir())
        return Nights(replace(self.warehouse, runtime=Runtime(settings, runtime.clock), folder=folder, loads=number))

    @property
    def site(self) -> SiteSettings:
        return self.warehouse.runtime.settings.site_or_folder("one")

    def clear(self) -> None:
        with self.warehouse.runtime.connect() as connection:
            empty(connection)

    def load(self, held: Night, *, world: str = "w", complete: bool = True) -> None:
        files = medication_world.files_of({world: held})
        given_files = files if complete else {kind: lines for kind, lines in files.items() if lines}
        export = self.warehouse.land(given_files, group="g" if complete else None, complete=complete)
        self.warehouse.ingest(export, confirmed=True)

    def content(self) -> Content:
        with self.warehouse.runtime.connect() as connection:
            return warehouse_content(connection, state=False)

    def rows(self) -> set[tuple[str, str]]:
        """(table, resource) of records of medications."""
        found = self.warehouse.rows(
            "SELECT cdm_table, resource_id FROM row_source WHERE cdm_table IN ('drug_exposure', 'procedure_occurrence')"
        )
        assert len(found) == len(set(found))
        return {(table, name.partition("-")[2]) for table, name in found}

    def after(self, nights: Sequence[Night], *, complete: bool = True) -> Content:
        self.clear()
        for held in nights:
            self.load(held, complete=complete)
        return self.content()

    def agree(self, nights: Sequence[Night], last: Night, *, complete: bool = True) -> None:
        """After these nights the warehouse has what `last` says, and what a fresh load of that makes."""
        reached = self.after(nights, complete=complete)
        self.assert_is(reached, last)

    def assert_is(self, reached: Content, last: Night) -> None:
        assert self.rows() == rows_of(last, self.site.mapping.double_counting)
        assert differences(reached, self.after([last])) == []


@pytest.fixture(scope="module")
def nights(module_warehouse: Warehouse) -> Nights:
    return Nights(module_warehouse).with_option("linked")


@pytest.mark.parametrize("order", list(permutations(("m1", "d1", "a1"))), ids=" ".join)
def test_each_order_of_arrival_ends_the_same(nights: Nights, order: Sequence[str]) -> None:
    first, *others = order
    nights.agree([night(f"p1 e1 {first}"), *({name: "A"} for name in others)], night("p1 e1 m1 d1 a1"), complete=False)


#: Nights, and the last good version of what is there then where that is not the last night.
GOING: list[tuple[list[str], str]] = [
    # each way in which what counted goes
    (["p1 m1 a1", "p1 m1"], ""),
    (["p1 m1 a1", "p1 m1 a1:X"], ""),
    (["p1 m1 a1", "p1 m1 a1:O"], ""),
    (["p1 m1 a1", "p1 m1 a1:N"], ""),
    (["p1 m1 m2 a1", "p1 m1 m2 a1:B"], ""),
    (["p1 m1 a1", "p1 m1 a1:V"], ""),
    (["p1 m1 a1:Z", "p1 m1 a1:Z"], "p1 m1"),
    (["p1 m1 a1", "p1 m1 a1:Z"], "p1 m1 a1"),  # what a broken line was before stays, and so what it counts for
    (["p1 m1 a1:Z", "p1 m1 a1"], ""),
    # some of those that count stay
    (["p1 m1 a1 a2:B", "p1 m1 a2:B"], ""),
    (["p1 m1 d1 a1", "p1 m1 d1"], ""),
    (["p1 m1 d1 a1", "p1 d1 a1", "p1 m1 d1"], ""),
    (["p1 m1 d1 a1", "p1 m1 d1:X", "p1 m1"], ""),
    # a dispense on two orders, of which one is given, and then not
    (["p1 m1 m2 d1:C", "p1 m1 m2 d1:C a1"], ""),
    (["p1 m1 m2 d1:C a1", "p1 m1 m2 d1:C"], ""),
    (["p1 m1 m2 d1:C d2 a1", "p1 m1 m2 d1:C d2 a1:X"], ""),
    (["p1 m1 m2 d1:C d2:C a1", "p1 m1 m2 d1:B d2:C a1", "p1 m1 m2 d1:C d2:C"], ""),
    # what does not count changes, or goes, or comes back
    (["p1 m1 a1", "p1 m1:B a1", "p1 m1:B"], ""),
    (["p1 m1 a1", "p1 m1:V a1"], ""),
    (["p1 m1:V a1:V", "p1 m1 a1:V"], ""),
    (["p1 m1 a1", "p1 a1", "p1"], ""),
    (["p1 m1 a1", "p1 a1", "p1 m1"], ""),
    (["p1 m1 a1", "p1", "p1 m1 a1"], ""),
    (["p1 m1 a1", "p1 m1:X a1", "p1 m1:X"], ""),
    (["p1 m1 a1", "p1 m1:Z a1", "p1 m1:Z"], "p1 m1"),
    # persons: of another one, who is replaced, is not, is not there, and comes
    (["p1 p2 m1 a3", "p1 p2:B m1 a3", "p1 p2 m1 a3", "p1 p2 m1"], ""),
    (["p1 m1 a3", "p1 p2 m1 a3"], ""),
    (["p1 p2 m1 a3", "p1 m1 a3"], ""),
    (["p1 p2 m1 a3", "p1 m1 a3", "p1 p2 m1 a3"], ""),
    (["p1 p2:B m1 a3", "p1 m1 a3"], ""),
    (["p1 p2:B m1 a3", "p2:B m1 a3", "p1 p2 m1 a3"], ""),
    (["p1 m1 a1", "m1 a1"], ""),
    (["p1 m1 a1", "m1 a1", "p1 m1 a1"], ""),
    (["p1 m1 a1", "m1 a1", "m1", "p1 m1"], ""),
    (["p1 m1 d1 a1", "m1 d1 a1", "p1 m1 d1"], ""),
    (["m1 a1", "p1 m1 a1", "p1 m1"], ""),
]


def _going() -> Iterator[Any]:
    """The first of each way every day, the others in turn: each is several nights and a fresh load."""
    for number, (history, last) in enumerate(GOING):
        yield pytest.param(history, last, id=" | ".join(history), marks=[pytest.mark.deep] if number > 6 else [])


@pytest.mark.parametrize(("history", "last"), list(_going()))
def test_what_counted_goes_and_the_other_comes_back(nights: Nights, history: list[str], last: str) -> None:
    nights.agree([night(text) for text in history], night(last or history[-1]))


def test_a_large_first_load_ends_the_same(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices are dropped for it and made again."""
    monkeypatch.setattr(bulk, "_BULK_ROWS", 1)
    last = night("p1 p2 e1 m1 m2 d1:C d2 a1 a3:B")
    nights.agree([last], last)
    assert nights.rows() == {("drug_exposure", "a1"), ("drug_exposure", "a3")}


def test_an_export_older_than_another_changes_nothing_of_what_that_says(nights: Nights) -> None:
    nights.clear()
    older = nights.warehouse.land(medication_world.files_of({"w": night("p1 m1 a1")}), group="g", complete=True)
    nights.load(night("p1 m1 a1:X"))
    nights.warehouse.ingest(older, confirmed=True)
    nights.assert_is(nights.content(), night("p1 m1"))


def test_accounts_and_states_say_what_is_counted_elsewhere(nights: Nights) -> None:
    nights.after([night("p1 m1 d1 a1")])
    counted = (
        "SELECT resource_type, count FROM exclusion WHERE reason = 'counted_elsewhere' AND export_id = %s ORDER BY 1"
    )
    (first,) = nights.warehouse.rows("SELECT max(export_id) FROM export_job")[0]
    assert nights.warehouse.rows(counted, first) == [("MedicationDispense", 1), ("MedicationRequest", 1)]
    nights.load(night("p1 m1 d1 a1"))  # nothing changed
    (second,) = nights.warehouse.rows("SELECT max(export_id) FROM export_job")[0]
    assert second == first + 1
    account = nights.warehouse.rows(
        "SELECT sum(lines)::int, sum(unchanged)::int FROM file_account WHERE export_id = %s", second
    )
    assert account == [(4, 4)]
    nights.load(night("p1 m1 d1"))
    # d1 was mapped again in a replay of its own, and the order stayed where it was.
    mapped = nights.warehouse.rows(
        "SELECT kind, resource_type, loaded, excluded FROM file_account JOIN export_job USING (export_id)"
        " WHERE export_id > %s AND lines > 0 AND kind = 'replay'",
        second,
    )
    assert mapped == [("replay", "MedicationDispense", 1, 0)]


def test_what_a_process_leaves_undone_the_next_load_does(nights: Nights) -> None:
    """It ends after what counted has gone, and before the other is mapped again."""
    nights.after([night("p1 m1 a1")])
    ended = mock.patch.object(loading.FollowUps, "land", side_effect=WarehouseError("the process ends"))
    with ended, pytest.raises(WarehouseError):
        nights.load(night("p1 m1 a1:X"))
    assert nights.rows() == set()
    nights.load(night("p1 m1 a1:X"))
    nights.assert_is(nights.content(), night("p1 m1 a1:X"))


def test_an_erased_persons_administration_counts_no_more(nights: Nights) -> None:
    """In a world of its own: landing has what other tests said of the patients of theirs."""
    nights.clear()
    nights.load(night("p1 p2 m1 a3"), world="y")
    assert nights.rows() == {("drug_exposure", "a3")}
    with erasing(nights.warehouse.runtime, "one", ["y-p2"]) as work:
        work.run()
    nights.load(night("p1 m1"), world="y")
    assert nights.rows() == {("drug_exposure", "m1")}
    assert nights.warehouse.value("SELECT count(*) FROM medication_record") == 1


def test_dead_letters_that_are_replayed_take_their_place(nights: Nights) -> None:
    nights.after([night("p1 m1 a1:Z")])
    replay_dead_letters(nights.warehouse.runtime, nights.site)
    nights.assert_is(nights.content(), night("p1 m1"))


def test_the_option_changes_what_counts_once_lines_are_mapped_again(nights: Nights) -> None:
    last = night("p1 e1 m1 d1 a1 m2 d2:N")
    nights.after([last])
    assert nights.rows() == rows_of(last)
    keeping = nights.with_option("keep")
    remap(keeping.warehouse.runtime, keeping.site)
    keeping.warehouse.assert_whole()
    assert keeping.rows() == rows_of(last, "keep")
    assert keeping.warehouse.value("SELECT count(*) FROM medication_record") == 0
    remap(nights.warehouse.runtime, nights.site)
    nights.assert_is(nights.content(), last)


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (["p1 e1 m1 a1:N"], {"a1"}),
        (["p1 e1 m1", "p1 e1 m1 a1:N"], {"a1"}),
        (["p1 e1 m1 a1:N", "p1 e1 m1"], {"m1"}),
        (["p1 e1 m1 a1:N", "p1 e1 m1 a1:V"], {"m1", "a1"}),
        pytest.param(["p1 e1 m1 d1:N", "p1 e1 m1 d1:N a1:N", "p1 e1 m1 d1:N"], {"d1"}, marks=pytest.mark.deep),
        (["p1 m1 a1:N", "p1 e1 m1 a1:N"], {"a1"}),  # the encounter itself need not be there
        (["p1 p2 e1 m1 a3:N"], {"m1", "a3"}),  # of another patient
        (["p1 p2 e1 m1 a3"], {"a3"}),  # but of the same order
        (["p1 e1 m1 m2 a1", "p1 e1 m1 m2"], {"m1", "m2"}),
        (["p1 e1 m1 m2 a1:X", "p1 e1 m1 m2 a1"], {"a1"}),  # of two orders of one drug in one encounter
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set | frozenset) else " | ".join(value),
)
def test_overlap_counts_records_of_one_encounter_once(nights: Nights, history: list[str], expected: set[str]) -> None:
    overlapping = nights.with_option("overlap")
    reached = overlapping.after([night(text) for text in history])
    assert {name for _, name in overlapping.rows()} == expected
    assert differences(reached, overlapping.after([night(history[-1])])) == []


def _random_nights() -> st.SearchStrategy[list[dict[str, str]]]:
    states = st.fixed_dictionaries(
        {name: st.sampled_from(versions) for name, versions in medication_world.RANDOM.items()}
    )
    held = states.map(lambda state: {name: version for name, version in state.items() if version != "-"})
    return st.lists(held, min_size=2, max_size=4)


@pytest.mark.deep
@histories(8)
@given(history=_random_nights(), option=st.sampled_from(("linked", "linked", "overlap")))
def test_any_history_ends_where_a_fresh_load_does(nights: Nights, history: list[dict[str, str]], option: str) -> None:
    good: dict[str, str] = {}
    for held in history:
        good |= {name: version for name, version in held.items() if version != "Z"}
    last = {name: good[name] for name in history[-1] if name in good}
    place = nights.with_option(option)
    reached = place.after(history)
    if option == "linked":
        assert place.rows() == rows_of(last)
    assert differences(reached, place.after([last])) == []


def test_overlaps_without_a_reference_are_counted(nights: Nights) -> None:
    """Of whom nothing names the other: by ingredient, person and day, each once however many it overlaps."""
    nights.after([night("p1 p2 m1:B m2 d1:N a1:N a2 a3:N")])
    with nights.warehouse.runtime.connect() as connection:
        every = overlapping_exposures(connection, "cdm", "vocab")
        # m2 is counted at a2; m1 (a drug with an ingredient in common), d1 share a day with a1 and a2; a3 is of another person.
        assert every == {"MedicationDispense": 1, "MedicationRequest": 1}
        last = nights.warehouse.value("SELECT max(export_id) FROM export_job")
        assert overlapping_exposures(connection, "cdm", "vocab", [last]) == every
        assert overlapping_exposures(connection, "cdm", "vocab", [last + 1]) == {}
        assert load_report(connection, "cdm", "vocab", [last]).overlaps == every
    nights.load(night("p1 p2 m1:B d1:N a3:N"))
    with nights.warehouse.runtime.connect() as connection:
        assert overlapping_exposures(connection, "cdm", "vocab") == {"MedicationRequest": 1}
