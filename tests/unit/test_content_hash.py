"""The content hash: equal for what a server may write another time, and for nothing else."""

from __future__ import annotations

import json
import random
from copy import deepcopy

import orjson
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.fhir.content_hash import content_digest, digests_as_integers
from pipeline.sql_on_fhir import exact_numbers

NAMES = st.one_of(
    st.sampled_from(["value", "url", "meta", "lastUpdated", "versionId", "extension", "attachment", "id"]), st.text()
)
TEXTS = st.one_of(st.text(), st.sampled_from(["http://a/b?c=1", "http://a/b?c=2", "http://a/b", "1", "true"]))
#: Without long ones that are written with an exponent: 1.2345678901234567e-07 and …e-7 have other digits to look at, and
#: count as a change. Such a line is mapped again, which is never wrong.
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: "e" not in repr(number) or len(repr(number)) < 16
)
VALUES = st.recursive(
    st.one_of(TEXTS, st.booleans(), st.integers(-(2**63), 2**63 - 1), FLOATS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=25,
)
#: Without `meta` and Attachments: nothing of these may be left out.
RESOURCES = st.dictionaries(NAMES.filter(lambda name: name != "meta"), VALUES, max_size=5)


def digest(resource):
    """As the transform stage has it: of a line, or of what is written as one."""
    raw = resource if isinstance(resource, bytes) else orjson.dumps(resource)
    long = exact_numbers.lines_with_long_numbers(pl.Series([raw.decode()]))
    parsed = orjson.loads(raw)
    found = content_digest(parsed, raw, has_long_numbers=bool(long))
    assert found is None or json.dumps(parsed) == json.dumps(orjson.loads(raw))  # as it was, and in the same order
    return found


def shuffled(value, order):
    if isinstance(value, dict):
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(item, order) for item in value] if isinstance(value, list) else value


def without_signatures(value):
    """The rule written once more, as the reference: what may differ."""
    if isinstance(value, list):
        return [without_signatures(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: without_signatures(item) for name, item in value.items()}
    for item in value_of_attachments(found):
        if isinstance(item, dict) and isinstance(item.get("url"), str):
            item["url"] = item["url"].split("?")[0]
    return found


def value_of_attachments(found):
    given = found.get("attachment", [])
    return given if isinstance(given, list) else [given]


def equal(one, other):
    """As JSON: 1 is not 1.0 and not true; the order of members is nothing."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@given(RESOURCES, st.randoms(use_true_random=False), st.booleans())
def test_the_order_of_members_and_the_writing_are_nothing(resource, order, ascii_only):
    other = json.dumps(shuffled(resource, order), indent=order.choice([None, 2]), ensure_ascii=ascii_only)
    assert digest(resource) is not None
    assert digest(other.encode()) == digest(resource)


@given(RESOURCES, RESOURCES)
def test_all_else_is_another_content(one, other):
    assert (digest(one) == digest(other)) == equal(without_signatures(one), without_signatures(other))


@given(RESOURCES.filter(bool), st.data())
def test_one_change_at_any_depth_is_seen(resource, data):
    changed = deepcopy(resource)
    at = changed
    while True:
        place = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not (isinstance(at[place], dict | list) and at[place]) or data.draw(st.booleans()):
            break
        at = at[place]
    at[place] = data.draw(VALUES)
    assume(not equal(without_signatures(changed), without_signatures(resource)))
    assert digest(changed) != digest(resource)


BASE = {"resourceType": "Observation", "id": "o", "status": "final", "valueQuantity": {"value": 1}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"meta": {"lastUpdated": "2025-01-01T00:00:00Z"}}, {"meta": {"lastUpdated": "2026-01-01T00:00:00Z"}}),
        ({"meta": {"versionId": "1"}}, {"meta": {"versionId": "2", "lastUpdated": "2026-01-01T00:00:00Z"}}),
        ({"meta": {"versionId": "1"}}, {}),
        ({"meta": {"versionId": "1", "tag": [{"code": "a"}]}}, {"meta": {"tag": [{"code": "a"}]}}),
        ({"content": [{"attachment": {"url": "u?s=1"}}]}, {"content": [{"attachment": {"url": "u?s=2#x"}}]}),
        ({"content": [{"attachment": {"url": "u?s=1"}}]}, {"content": [{"attachment": {"url": "u"}}]}),
        ({"content": {"url": "u?s=1"}}, {"content": {"url": "u?s=2"}}),
        ({"presentedForm": [{"url": "u?s=1"}]}, {"presentedForm": [{"url": "u?s=2"}]}),
        ({"photo": [{"url": "u?s=1"}, {"url": "v?1"}]}, {"photo": [{"url": "u?s=2"}, {"url": "v?2"}]}),
        (
            {"extension": [{"url": "e?", "valueAttachment": {"url": "u?s=1"}}]},
            {"extension": [{"url": "e?", "valueAttachment": {"url": "u?s=2"}}]},
        ),
        (
            {"contained": [{"resourceType": "Media", "content": {"url": "u?s=1"}}]},
            {"contained": [{"resourceType": "Media", "content": {"url": "u?s=2"}}]},
        ),
    ],
)
def test_what_servers_stamp_and_sign_is_nothing(one, other):
    assert digest({**BASE, **one}) == digest({**other, **BASE})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"meta": {"tag": [{"code": "a"}]}}, {"meta": {"tag": [{"code": "b"}]}}),
        ({"meta": {"profile": ["u?a"]}}, {"meta": {"profile": ["u?b"]}}),
        ({"contained": [{"meta": {"versionId": "1"}}]}, {"contained": [{"meta": {"versionId": "2"}}]}),
        ({"extension": [{"url": "u?s=1"}]}, {"extension": [{"url": "u?s=2"}]}),
        ({"content": [{"attachment": {"url": "u?s"}}]}, {"content": [{"attachment": {"url": "v?s"}}]}),
        ({"content": [{"attachment": {"title": "u?1"}}]}, {"content": [{"attachment": {"title": "u?2"}}]}),
        ({"note": [{"text": "why? 1"}]}, {"note": [{"text": "why? 2"}]}),
        ({"lastUpdated": "1"}, {"lastUpdated": "2"}),
        ({"component": [1, 2]}, {"component": [2, 1]}),
        ({"a": None}, {}),
        ({"a": "1"}, {"a": 1}),
        ({"a": True}, {"a": 1}),
        ({"a": "\u00e9"}, {"a": "e\u0301"}),
    ],
)
def test_what_is_said_is_content(one, other):
    assert digest({**BASE, **one}) != digest({**BASE, **other})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1.00000000000000000001", "1", False),
        ("1.00000000000000000001", "1.0", False),
        ("1.00000000000000000001", "1.00000000000000000002", False),
        ("1.00000000000000000001", '"1.00000000000000000001"', False),
        ("1.00000000000000000001", '{"\\u0000number":"1.00000000000000000002"}', False),
        ("18446744073709551616", "18446744073709551617", False),
        ("123456789012345678", "123456789012345679", False),
        ("0." + "1" * 900, "0." + "1" * 899 + "2", False),
        ("-1.5", "1.5", False),
        ("1", "1.0", False),
        ("0.1", "0.10000000000000001", False),
        ("1.00000000000000000001", "1.00000000000000000001", True),
        # What a column keeps is one number, as it has always been loaded.
        ("1.0", "1.00", True),
        ("100.0", "1e2", True),
        ("0", "-0", True),
    ],
)
def test_numbers_count_as_they_are_kept(one, other, same):
    def line(text):
        return b'{"resourceType":"Observation","id":"o","valueQuantity":{"value":%s}}' % text.encode()

    assert (digest(line(one)) == digest(line(other))) is same
    assert digest(line(one)) is not None


def test_of_repeated_members_the_last_counts_as_everywhere():
    last = digest(b'{"resourceType":"Basic","id":"b","code":2}')
    assert digest(b'{"resourceType":"Basic","id":"b","code":1,"code":2}') == last
    assert digest(b'{"resourceType":"Basic","id":"b","code":2,"code":1}') != last


@pytest.mark.parametrize("value", ["[" * 600 + "]" * 600, "[" * 600 + '"?"' + "]" * 600])
def test_what_is_nested_too_deeply_has_no_hash(value):
    assert digest(b'{"resourceType":"Basic","id":"b","x":%s}' % value.encode()) is None


@pytest.mark.parametrize("line", [b'{"id":"b","meta":[1]}', b'{"id":"b","meta":"x?"}', b'{"id":"b","meta":7}'])
def test_a_meta_that_is_no_object_has_no_hash(line):
    assert digest(line) is None


def test_digests_become_the_column():
    assert digests_as_integers([b"\x01" + b"\x00" * 7, None, b"\xff" * 8]).to_list() == [1, None, -1]
    assert digests_as_integers([]).dtype == pl.Int64


def test_lines_of_any_order_have_one_hash():
    order = random.Random(7)
    resource = {**BASE, "code": {"coding": [{"system": "http://loinc.org", "code": "1"}, {"code": "2"}]}}
    assert len({digest(shuffled(resource, order)) for _ in range(50)}) == 1
