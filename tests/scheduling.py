"""Which tests stay together under pytest-xdist: those of a file, and of the golden cases those of a part."""

from __future__ import annotations

from functools import cached_property

from xdist.scheduler import LoadFileScheduling

__all__ = ["FilesAndParts"]

_GOLDEN = "tests/golden/test_golden.py"
_GOLDEN_TEST = f"{_GOLDEN}::test_golden["


class FilesAndParts(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """`--dist loadfile`, with the golden cases in parts that several workers load at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        if nodeid.startswith(_GOLDEN_TEST):
            return f"{file}::{self._parts.get(nodeid.removeprefix(_GOLDEN_TEST).removesuffix(']'), '')}"
        return file

    @cached_property
    def _parts(self) -> dict[str, str]:
        from tests.golden.test_golden import PARTS  # reads all cases, for sessions that run them

        return PARTS
