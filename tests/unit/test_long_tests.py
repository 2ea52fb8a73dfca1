"""`tests/long_tests.txt` names tests that there are: a name that is gone would divide nothing."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def test_every_name_is_a_test() -> None:
    names = (_ROOT / "tests" / "long_tests.txt").read_text(encoding="utf-8").split()
    assert names == sorted(set(names))
    for name in names:
        file, _, function = name.partition("::")
        text = (_ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(async )?def {function.rpartition('::')[2]}\(", text, re.MULTILINE), name
