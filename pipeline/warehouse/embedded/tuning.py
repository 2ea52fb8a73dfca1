"""The settings with which a new embedded database is made: for bulk loads on a machine with 2 to 16 cores.

They are written to `postgresql.conf` once, so that they can be changed there or by ALTER SYSTEM. What must not
be changed (sockets, who may connect) is given at every start instead: `pipeline/warehouse/embedded/server.py`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

__all__ = ["memory_limit", "new_database_settings"]

_MEBIBYTE = 1024 * 1024

#: Written by the kernel for a container that has a memory limit (control groups version 2, then 1).
_CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, never written to


def memory_limit() -> int:
    """Bytes of memory that this machine or container has."""
    limit = psutil.virtual_memory().total
    for file in _CONTAINER_LIMITS:
        try:
            limit = min(limit, int(file.read_text()))
        except (OSError, ValueError):  # no container, or the word "max"
            continue
    return limit


def new_database_settings(memory: int) -> dict[str, str]:
    """PostgreSQL's settings by name; `memory` in bytes."""
    mebibytes = memory // _MEBIBYTE
    settings = {
        # a sixth, not PostgreSQL's usual quarter: the transform's worker processes need memory at the same time
        "shared_buffers": f"{_between(128, mebibytes // 6, 4096)}MB",
        "effective_cache_size": f"{max(256, mebibytes // 2)}MB",
        "maintenance_work_mem": f"{_between(64, mebibytes // 16, 1024)}MB",
        "work_mem": f"{_between(8, mebibytes // 128, 64)}MB",
        # a load of a whole export must not force a checkpoint every few seconds
        "max_wal_size": "4GB",
        "min_wal_size": "256MB",
        "checkpoint_timeout": "15min",
        # Nobody copies the embedded server by its log: the first load of an empty warehouse does without it.
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "wal_compression": "on",
        "random_page_cost": "1.1",
        "jit": "off",
        "autovacuum": "on",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # A refused row, and the statement that brought it, would be written to the log with the patient's data.
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
    }
    if _SHARED_MEMORY.is_dir() and shutil.disk_usage(_SHARED_MEMORY).total < 1024 * _MEBIBYTE:
        # containers get 64 MB there by default, on which parallel queries fail
        settings["dynamic_shared_memory_type"] = "sysv"
    return settings


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
