"""`python -m benchmarks`: see `benchmarks.cli`. Kept empty, because every worker process imports this file again."""

from __future__ import annotations

if __name__ == "__main__":
    from benchmarks.cli import main

    main()
