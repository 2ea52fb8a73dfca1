"""Sessions with a site for reads and searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pipeline.core.settings import SiteSettings
from pipeline.extract.asked_types import asked_types
from pipeline.extract.http.rate_limiter import RateLimiter
from pipeline.extract.rest.client import RestClient
from pipeline.extract.site_session import site_session
from pipeline.warehouse.runtime import Runtime

__all__ = ["rest_session"]


@contextmanager
def rest_session(runtime: Runtime, site: SiteSettings, resource_types: Sequence[str] = ()) -> Iterator[RestClient]:
    """A client for reads and searches of a site; its tokens also cover `resource_types` in addition to the site's own."""
    every = tuple(dict.fromkeys((*asked_types(runtime.settings, site), *resource_types)))
    with site_session(runtime, site.model_copy(update={"resource_types": every})) as session:
        yield RestClient(session, RateLimiter(runtime.clock, site.requests_per_second))
