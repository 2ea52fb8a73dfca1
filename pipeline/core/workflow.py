"""Who is at work: the command or job, its run and the account. Log lines and the access log name them."""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import ParamSpec, TypeVar

__all__ = [
    "Workflow",
    "about_export",
    "carried",
    "current_export",
    "current_workflow",
    "names_export",
    "working_as",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Workflow:
    """`run_id` is Dagster's in a Dagster run, else one of this process."""

    name: str
    run_id: str
    os_user: str


def current_workflow() -> Workflow:
    """What this thread works for; outside of `working_as`, the process itself."""
    return _current.get() or _process()


@contextmanager
def working_as(name: str, run_id: str | None = None) -> Iterator[Workflow]:
    """Everything that the block does is done for this command or job."""
    workflow = Workflow(name, run_id or _process().run_id, _process().os_user)
    token = _current.set(workflow)
    try:
        yield workflow
    finally:
        _current.reset(token)


@contextmanager
def about_export(export_id: int) -> Iterator[None]:
    """What the block does is about this export; the access log names it. Threads that it starts are given `carried`
    functions."""
    token = _export.set(export_id)
    try:
        yield
    finally:
        _export.reset(token)


def current_export() -> int | None:
    return _export.get()


def names_export(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """For a function of which one argument is a job: what it does is about the job's export."""

    @wraps(function)
    def named(*arguments: _P.args, **others: _P.kwargs) -> _R:
        export_id = next(one.export_id for one in (*arguments, *others.values()) if hasattr(one, "export_id"))
        with about_export(export_id):
            return function(*arguments, **others)

    return named


def carried(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function as another thread is to run it: about the export of this one."""
    export_id = current_export()

    @wraps(function)
    def run(*arguments: _P.args, **others: _P.kwargs) -> _R:
        if export_id is None:
            return function(*arguments, **others)
        with about_export(export_id):
            return function(*arguments, **others)

    return run


_export: ContextVar[int | None] = ContextVar("epic_omop_export", default=None)
_current: ContextVar[Workflow | None] = ContextVar("epic_omop_workflow", default=None)


@cache
def _process() -> Workflow:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's account without an entry in /etc/passwd
        user = f"uid {os.getuid()}"
    return Workflow("epic-omop", f"p-{uuid.uuid4().hex[:12]}", user)
