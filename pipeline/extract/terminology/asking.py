"""Asking a service about many codes: in batches, within a time, and not again where it does not answer.

Retry-After is kept to as far as the time allows. A service that fails again and again, asks for a longer wait, or uses up
the time is left alone for a while (`Pause`), so that a slow one never holds up a night; what it has not said is asked by
a later run. A single code that a service cannot take stands in nobody's way: a refused batch is asked about in halves, and
codes that fail are passed over as long as others are answered between them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.core.clock import Clock
from pipeline.core.errors import EpicOmopError, ProtocolError, RemoteRefused, TransientError, Unreachable
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.extract.terminology.service import Replies, Service
from pipeline.warehouse.resolver_cache import AskedCode, Pause

__all__ = ["Asked", "ask_all"]

_ATTEMPTS = 3
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0
_PAUSE = timedelta(hours=1)
#: Batches that fail one after the other: then it is the service, and not what it was asked.
_FAILURES_IN_A_ROW = 3
#: With which a service refuses what it was asked, and not who asks.
_OF_CODES = frozenset({400, 413, 414, 422})


@dataclass
class Asked:
    """How far the asking came."""

    answered: int = 0
    #: why it ended before its end
    problem: str | None = None
    #: the service is left alone until then
    pause: Pause | None = None


def ask_all(
    service: Service,
    codes: Sequence[AskedCode],
    settings: ResolverSettings,
    clock: Clock,
    keep: Callable[[Replies], None],
) -> Asked:
    """Ask about these codes, and hand each batch of answers to `keep`. Raises nothing of the service's."""
    until = clock.now() + timedelta(seconds=settings.most_seconds)
    asked = Asked()
    waiting = deque(codes[first : first + service.batch] for first in range(0, len(codes), service.batch))
    failures = 0
    while waiting and failures < _FAILURES_IN_A_ROW:
        batch = waiting.popleft()
        if clock.now() >= until:
            _leave_alone(asked, clock, "it took longer than most_seconds")
            break
        try:
            replies = _ask(service, batch, clock, until)
        except EpicOmopError as error:
            if len(batch) > 1 and _is_about_codes(error):
                half = len(batch) // 2
                waiting.extendleft((batch[half:], batch[:half]))
                continue
            failures += 1
            asked.problem = f"{error.message} {error.advice}".strip()
            if not _may_be_a_single_code(error):
                failures = _FAILURES_IN_A_ROW
            if isinstance(error, TransientError) and (failures == _FAILURES_IN_A_ROW or not waiting):
                _leave_alone(asked, clock, error.message, error.next_try)
            continue
        failures = 0
        asked.answered += len(replies.answers)
        keep(replies)
    return asked


def _is_about_codes(error: EpicOmopError) -> bool:
    return isinstance(error, RemoteRefused) and error.status in _OF_CODES


def _may_be_a_single_code(error: EpicOmopError) -> bool:
    """Whether the service may well answer about other codes: it is there, and neither asks for a wait nor refuses us."""
    if isinstance(error, TransientError):
        return error.next_try is None and not isinstance(error, Unreachable)
    if isinstance(error, RemoteRefused):
        return _is_about_codes(error) or error.status == 404
    return isinstance(error, ProtocolError)


def _ask(service: Service, codes: Sequence[AskedCode], clock: Clock, until: datetime) -> Replies:
    for attempt in range(1, _ATTEMPTS):
        try:
            return service.ask(codes)
        except TransientError as error:
            now = clock.now()
            wait = _FIRST_WAIT_SECONDS * 2.0 ** (attempt - 1)
            if error.next_try is not None:
                wait = max(wait, (error.next_try - now).total_seconds())
            if wait > _LONGEST_WAIT_SECONDS or now + timedelta(seconds=wait) >= until:
                raise
            clock.sleep(wait)
    return service.ask(codes)


def _leave_alone(asked: Asked, clock: Clock, problem: str, next_try: datetime | None = None) -> None:
    until = clock.now() + _PAUSE
    asked.problem = problem
    asked.pause = Pause(max(until, next_try) if next_try else until, problem)
