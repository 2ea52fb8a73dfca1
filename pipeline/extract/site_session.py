"""Sessions with a site for the pipeline's own work: every request is in the access log and counts for the budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.core.settings import SiteSettings
from pipeline.extract.access_log import WarehouseAccessLog
from pipeline.extract.asked_types import with_asked_types
from pipeline.extract.http.transport import RetryPolicy
from pipeline.extract.request_budget import WarehouseRequestBudget
from pipeline.extract.smart.session import EpicSession, open_session
from pipeline.warehouse.runtime import Runtime

__all__ = ["site_session"]


@contextmanager
def site_session(runtime: Runtime, site: SiteSettings, *, policy: RetryPolicy | None = None) -> Iterator[EpicSession]:
    """A session with the site, in the name of the current workflow (`pipeline.core.workflow`).

    Any request may raise RequestBudgetSpent, with the time to continue. Raises ConfigurationError for a site without a
    FHIR server and for an unusable key, MappingError where a site that names no types has mappings that cannot be read.
    """
    with (
        WarehouseAccessLog(runtime.connect, site, runtime.clock) as access,
        WarehouseRequestBudget(runtime.connect, site, runtime.clock) as budget,
        open_session(
            with_asked_types(runtime.settings, site), runtime.clock, policy=policy, access=access, budget=budget
        ) as session,
    ):
        yield session
