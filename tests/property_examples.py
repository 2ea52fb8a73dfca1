"""How many histories the property tests try: a few in every run of the suite, many under `--hypothesis-profile=deep`."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings

__all__ = ["DEEP", "histories"]

#: Name of the profile; tests/conftest.py registers it.
DEEP = "deep"


def histories(usual: int) -> Any:
    """Settings of a test whose examples are histories of exports: each loads a warehouse several times.

    `usual`: the number of examples outside the profile, the same in every run. Under the profile there are as many as it
    says, new ones in each run. Failures are not shrunk: a history takes seconds.
    """
    deep = settings.get_current_profile_name() == DEEP
    return settings(
        max_examples=settings.default.max_examples if deep and settings.default else usual,
        deadline=None,
        derandomize=not deep,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        print_blob=deep,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )
