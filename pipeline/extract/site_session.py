"""Sessions with a site for the pipeline's own work: every request is in the access log and counts for the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.core.settings import SiteSettings
from pipeline.extract.access_log import WarehouseAccessLog
from pipeline.extract.http.pace import Pace
from pipeline.extract.http.transport import RetryPolicy
from pipeline.extract.request_budget import WarehouseRequestBudget
from pipeline.extract.rest.client import RestClient
from pipeline.extract.smart.session import EpicSession, open_session
from pipeline.warehouse.runtime import Runtime

__all__ = ["rest_session", "site_session"]


@contextmanager
def site_session(runtime: Runtime, site: SiteSettings, *, policy: RetryPolicy | None = None) -> Iterator[EpicSession]:
    """A session with the site, in the name of the current workflow (`pipeline.core.workflow`).

    Any request may raise RequestBudgetSpent, with the time to go on. Raises ConfigurationError for a site without a
    FHIR server and for an unusable key.
    """
    with (
        WarehouseAccessLog(runtime.connect, site, runtime.clock) as access,
        WarehouseRequestBudget(runtime.connect, site, runtime.clock) as budget,
        open_session(site, runtime.clock, policy=policy, access=access, budget=budget) as session,
    ):
        yield session


@contextmanager
def rest_session(runtime: Runtime, site: SiteSettings, resource_types: Sequence[str] = ()) -> Iterator[RestClient]:
    """A client for reads and searches of a site; its tokens also cover `resource_types` beside the site's own."""
    every = tuple(dict.fromkeys((*site.resource_types, *resource_types)))
    with site_session(runtime, site.model_copy(update={"resource_types": every})) as session:
        yield RestClient(session, Pace(runtime.clock, site.requests_per_second))
