"""Which tests stay together under pytest-xdist: those of a file, and of the golden cases those of a part."""

from __future__ import annotations

from functools import cached_property

from xdist.scheduler import LoadFileScheduling

from tests.golden.parts import USUAL

__all__ = ["FilesAndParts"]

_GOLDEN = "tests/golden/test_golden.py"
_GOLDEN_TEST = f"{_GOLDEN}::test_golden["


class FilesAndParts(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """`--dist loadfile`, with the golden cases in parts that several workers load at once."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        if not nodeid.startswith(f"{_GOLDEN}::"):
            return file
        parameter = nodeid.partition("[")[2].removesuffix("]")
        if nodeid.startswith(_GOLDEN_TEST):
            return f"{file}::{self._parts.get(parameter, USUAL)}"
        # Of tests that look at the warehouse of a whole part, those for each part name it.
        return f"{file}::{parameter if parameter in self._parts.values() else USUAL}"

    @cached_property
    def _parts(self) -> dict[str, str]:
        from tests.golden.test_golden import PARTS  # reads all cases, for sessions that run them

        return PARTS
