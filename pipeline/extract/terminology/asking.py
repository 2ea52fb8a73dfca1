"""Asking a service about many codes: in batches, within a time, and not again where it does not answer.

Retry-After is kept to as far as the time allows. A service that fails again and again, asks for a longer wait, or uses up
the time is left alone for a while (`Pause`), so that a slow one never holds up a night; what it has not said is asked by
a later run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pipeline.core.clock import Clock
from pipeline.core.errors import EpicOmopError, TransientError
from pipeline.core.resolver_settings import ResolverSettings
from pipeline.extract.terminology.service import Replies, Service
from pipeline.warehouse.resolver_cache import AskedCode, Pause

__all__ = ["Asked", "ask_all"]

_ATTEMPTS = 3
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0
_PAUSE = timedelta(hours=1)


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
    for first in range(0, len(codes), service.batch):
        batch = codes[first : first + service.batch]
        if clock.now() >= until:
            _leave_alone(asked, clock, "it took longer than most_seconds")
            break
        try:
            replies = _ask(service, batch, clock, until)
        except TransientError as error:
            _leave_alone(asked, clock, error.message, error.next_try)
            break
        except EpicOmopError as error:
            asked.problem = f"{error.message} {error.advice}".strip()
            break
        asked.answered += len(replies.answers)
        keep(replies)
    return asked


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
