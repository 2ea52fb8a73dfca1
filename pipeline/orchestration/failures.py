"""How errors are shown in Dagster: what happened and what to do, and never a value of the data.

Dagster stores an exception with its text and its causes. A PostgreSQL error quotes the row that it refused, so only
the words of our own errors are let through; of any other exception, its class and the lines of code.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from pipeline.core.errors import EpicOmopError, TransientError, WarehouseUnavailable
from pipeline.core.unexpected import refusal_of_files
from pipeline.warehouse.server_failures import server_errors

__all__ = ["as_failure", "passes_soon", "raise_as_failures"]

_ROOT = Path(__file__).resolve().parents[2]


def as_failure(error: EpicOmopError) -> dg.Failure:
    """The Dagster failure that says what an expected error says. Only one that passes soon may be retried."""
    metadata = {"kind of error": type(error).__name__, **({"what to do": error.advice} if error.advice else {})}
    description = f"{error.message} {error.advice}".strip()
    return dg.Failure(description, metadata, allow_retries=passes_soon(error))


def passes_soon(error: EpicOmopError) -> bool:
    """Whether the same step may succeed in some minutes. False where the error names the time of the next try."""
    if isinstance(error, TransientError):
        return error.next_try is None
    return isinstance(error, WarehouseUnavailable)


@contextmanager
def raise_as_failures() -> Iterator[None]:
    """Turns every exception of the block into a dg.Failure without causes."""
    try:
        with server_errors():
            yield
    except (dg.Failure, dg.DagsterError):  # Dagster's own errors speak of its parts, not of data
        raise
    except EpicOmopError as error:
        raise as_failure(error) from None
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may hold patient data and must not be stored
        refusal = refusal_of_files(error)
        raise as_failure(refusal) if refusal else _defect(error) from None


def _defect(error: Exception) -> dg.Failure:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_ROOT)] or list(frames)
    places = [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in reversed(ours)]
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    return dg.Failure(
        f"Unexpected {name} at {places[0]}. Its text is not shown, because it may quote data: the same step by an"
        " epic-omop command writes it to a file in the home, and names that.",
        {"kind of error": name, "where": dg.MetadataValue.md("\n".join(f"- {place}" for place in places))},
        allow_retries=False,
    )
