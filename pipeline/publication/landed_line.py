"""Where the landed line of a resource lies. What a publication does with lines is in its steps."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

__all__ = ["LANDED_LINE", "LandedLine"]


class LandedLine(NamedTuple):
    """The landed line of a resource: where it lies, and by what it is known elsewhere. SQL: `LANDED_LINE`."""

    export_id: int
    file_number: int
    byte_offset: int
    byte_length: int
    surrogate_id: int
    resource_type: str
    raw_hash_high: int
    raw_hash_low: int
    #: transactionTime of the export that brought it
    as_of: datetime

    @property
    def hashes(self) -> tuple[int, int]:
        return self.raw_hash_high, self.raw_hash_low


#: The columns of a `LandedLine`, where resource_state is `state` and site_resource_type `kind`.
LANDED_LINE = (
    "state.export_id, state.file_number, state.byte_offset, state.byte_length, state.surrogate_id, kind.resource_type,"
    " state.raw_hash_high, state.raw_hash_low, state.as_of"
)
