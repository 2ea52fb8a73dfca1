"""Whether what comes as a file of resources is one."""

from __future__ import annotations

import gzip

import orjson
import pytest

from pipeline.landing.content import ContentCheck

LINE = orjson.dumps({"resourceType": "Patient", "id": "p1", "text": "ä" * 10})
ARRAY = [{"resourceType": "Patient", "id": f"p{number}"} for number in range(3)]


def judged(content: bytes, size: int, resource_type: str | None = "Patient") -> bool:
    check = ContentCheck(resource_type)
    for start in range(0, len(content), size):
        check.add(content[start : start + size])
    check.end_line()
    return check.found


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        LINE,
        LINE + b"\n",
        b"\xef\xbb\xbf" + LINE,
        b"\r\n \t\r\n" + LINE + b"\r\n",
        b"{broken\n<html>\n" + LINE + b"\n",
        b'{ "id" : "p1" , "resourceType" : "Patient" }',
    ],
)
def test_one_line_of_the_type_is_enough(content: bytes, size: int) -> None:
    assert judged(content, size)


@pytest.mark.parametrize("size", [7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html><body>We are back at 6 am</body></html>\n",
        orjson.dumps(ARRAY),
        orjson.dumps(ARRAY, option=orjson.OPT_INDENT_2),
        b"[\n" + b",\n".join(orjson.dumps(one) for one in ARRAY[:2]) + b"\n]",
        b"\xef\xbb\xbf \n[" + b",\n".join(orjson.dumps(one) for one in ARRAY[:2]) + b"]",
        LINE.decode().encode("utf-16"),
        LINE.decode().encode("utf-16-le"),
        gzip.compress(LINE + b"\n", mtime=0),
        b"{}\n",
        b'"Patient"\nnull\n17\n',
        b'{"resourceType":"Observation"}\n',
        b'{"resourceType":["Patient"]}\n',
        b'{"resourceType":"Patient","id":\n',
        orjson.dumps({"resourceType": "Bundle", "entry": [{"resource": ARRAY[0]}]}),
    ],
)
def test_what_holds_no_line_of_the_type(content: bytes, size: int) -> None:
    assert not judged(content, size)


def test_a_line_that_is_very_long_is_judged_by_its_beginning() -> None:
    long = b'{"resourceType":"Patient","text":"' + b"x" * (17 << 20)
    assert judged(long + b'"}\n', 1 << 20)
    assert not judged(long.replace(b"Patient", b"Observation", 1) + b'"}\n', 1 << 20)
    assert judged(long.replace(b"Patient", b"Observation", 1) + b'"}\n' + LINE, 1 << 20)


def test_of_no_type_any_object_will_do() -> None:
    assert judged(b"{}\n", 1, None)
    assert not judged(b"<html>\n[]\n", 1, None)
