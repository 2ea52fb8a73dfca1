"""Reading references one by one, side by side: what came, what was refused, and when to stop. HTTP only.

Which references are missing, and what is done with the responses, is `pipeline/load/hydration.py`'s.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.core.errors import (
    AuthenticationRefused,
    EpicOmopError,
    ProtocolError,
    RemoteRefused,
    TransientError,
    UnsafeRemote,
)
from pipeline.core.workflow import carried
from pipeline.extract.rest.client import RestClient

__all__ = ["ReferenceFetcher", "ReferenceResponse"]

_log = logging.getLogger(__name__)

#: So many refusals (403) of a type in a row, and none granted: the API is not registered; the rest is not asked for.
_MOST_REFUSALS = 20

#: So many references in a row that the server could not answer after all attempts: it is down.
_MOST_FAILURES = 3


@dataclass(frozen=True)
class ReferenceResponse:
    """Result of one reference (`Type/id`): a line; or none, and the HTTP status of a refusal; or nothing for now."""

    reference: str
    line: bytes | None = None
    status: int | None = None
    failure: EpicOmopError | None = None

    @property
    def resource_type(self) -> str:
        return self.reference.partition("/")[0]


class ReferenceFetcher:
    """The reads of one hydration; counts over all its batches."""

    def __init__(self, client: RestClient) -> None:
        self._client = client
        self._workers = client.session.site.rest_workers
        self._refusals: Counter[str] = Counter()
        self._granted: set[str] = set()
        self._failures = 0
        #: Asking on is of no use: the server fails, or refuses the token.
        self.is_down = False
        #: Types that are not asked for any more: not granted, or refused every time.
        self.refused_types: tuple[str, ...] = ()

    def exclude_not_granted(self, resource_types: Collection[str]) -> None:
        """Types that the token does not cover are named, not asked for one by one (rule 8). Asks for a token.

        Raises AuthenticationRefused, ProtocolError, RemoteRefused, RemoteUnavailable.
        """
        session = self._client.session
        session.transport.retrying(lambda: session.tokens.current(session.transport))
        self.refused_types = tuple(name for name in session.tokens.missing_types() if name in resource_types)

    def responses(self, references: Sequence[str]) -> Iterator[ReferenceResponse]:
        """The answers, in the order of the references; none for types that are refused.

        Ends early, raising nothing, when asking on is of no use (`is_down`): what came before counts.
        """
        with ThreadPoolExecutor(self._workers, "hydrate") as pool:
            size = self._workers * 2  # small: a server that is down, or refuses a type, is seen soon
            for start in range(0, len(references), size):
                piece = references[start : start + size]
                asked = [one for one in piece if one.partition("/")[0] not in self.refused_types]
                for response in pool.map(carried(self._fetch), asked):
                    self._count(response)
                    yield response
                if self.is_down:
                    return

    def _fetch(self, reference: str) -> ReferenceResponse:
        resource_type, resource_id = reference.split("/", 1)
        try:
            return ReferenceResponse(reference, self._client.read(resource_type, resource_id))
        except RemoteRefused as error:
            return ReferenceResponse(reference, status=error.status)
        except ProtocolError as error:  # another resource than the one asked for
            _log.warning("%s", error.message)
            return ReferenceResponse(reference)
        except (TransientError, AuthenticationRefused, UnsafeRemote) as error:
            return ReferenceResponse(reference, failure=error)

    def _count(self, response: ReferenceResponse) -> None:
        kind = response.resource_type
        self._failures = self._failures + 1 if response.failure else 0
        if self._failures >= _MOST_FAILURES or isinstance(response.failure, AuthenticationRefused):
            self.is_down = True  # for good: answers that were under way may still come
        if response.line is not None:
            self._granted.add(kind)
        elif response.status == 403 and kind not in self._granted:
            self._refusals[kind] += 1
            if self._refusals[kind] == _MOST_REFUSALS:
                _log.warning("The server refuses every %s: the rest is not asked for.", kind)
                self.refused_types = (*self.refused_types, kind)
