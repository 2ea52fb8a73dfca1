"""`epic-omop demo`: the whole way with a simulated Epic, through the Dagster job itself, and its result."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omop_schema.exports import ExportKind
from pipeline.commands.terminal import Terminal, bold, words

if TYPE_CHECKING:
    from pipeline.core.settings import SiteSettings
    from pipeline.orchestration.nightly import RunOutcome
    from pipeline.sandbox.config import SandboxConfig
    from pipeline.sandbox.server import RunningSandbox
    from pipeline.warehouse.runtime import Runtime

__all__ = ["register"]

SITE = "demo"
DEFAULT_PATIENTS = 200
_DAY_SECONDS = 86_400
#: The sandbox's clock is moved on by a day before each further export, so its window of 24 hours is over; ours is not
#: moved, so the demo's site entry has a window that is over at once.
_WINDOW_HOURS = 0.0001


def register(app: typer.Typer) -> None:
    app.command("demo")(demo)


def demo(
    patients: Annotated[int, typer.Option(min=1, help="Number of synthetic patients.")] = DEFAULT_PATIENTS,
) -> None:
    """Show the whole way: simulated Epic, $export, NDJSON, OMOP in PostgreSQL. Run it again for the next night.

    Uses the demonstration vocabulary and the embedded PostgreSQL (or EPIC_OMOP_DATABASE_URL). Everything it makes is
    under EPIC_OMOP_HOME.

    Example: epic-omop demo --patients 50
    """
    from pipeline.sandbox.server import RunningSandbox
    from pipeline.warehouse.runtime import Runtime

    console = Terminal()
    started = time.monotonic()
    runtime = Runtime.from_environment()
    _prepare(console, runtime)
    is_first = SITE not in runtime.settings.sites
    with RunningSandbox(_sandbox_config(runtime, patients)) as sandbox:
        if not is_first:
            _next_day(console, sandbox)
        site = _register(runtime, sandbox)
        runtime = Runtime.from_environment()  # the site is in sites.yaml now
        console.print(f"Simulated Epic at {sandbox.fhir_url}, {patients:,} patients, {len(site.groups)} groups.")
        outcome = _night(console, runtime)
    if outcome.export_ids:
        _report(console, runtime, outcome)
    _refuse_failed(outcome)
    console.print(f"Done in {time.monotonic() - started:.0f} s.")
    _what_next(console, runtime)


def _prepare(console: Terminal, runtime: Runtime) -> None:
    """Schemas, and the demonstration vocabulary where none is loaded."""
    from pipeline.core.settings import MAPPINGS_FOLDER
    from pipeline.warehouse.schema import install_schemas, schema_names
    from pipeline.warehouse.vocabulary import compile_index, current_release, load_vocabulary

    settings = runtime.settings
    with console.status("starting PostgreSQL, making the schemas"):
        install_schemas(runtime.url, **schema_names(settings))
    if current_release(runtime.url, etl_schema=settings.etl_schema) is None:
        with console.status("loading the demonstration vocabulary"):
            release = load_vocabulary(
                runtime.url,
                MAPPINGS_FOLDER / "demo_vocabulary",
                vocab_schema=settings.vocab_schema,
                etl_schema=settings.etl_schema,
            )
            compile_index(runtime.url, release, vocab_schema=settings.vocab_schema, home=settings.home)
        console.print(f"Vocabulary: {release.release}, {release.concept_count:,} concepts, for demonstration only.")


def _groups(patients: int) -> int:
    """Epic recommends ≤ 1,000 patients a group; the demo shows that a site has several."""
    return max(2, -(-patients // 1000))


def _sandbox_config(runtime: Runtime, patients: int) -> SandboxConfig:
    from pipeline.commands.sandbox import CLIENT_ID
    from pipeline.sandbox.config import RegisteredClient, SandboxConfig
    from pipeline.sandbox.keys import client_key
    from pipeline.sandbox.sources import GeneratedSource

    folder = runtime.settings.home / "sandbox"
    count = _groups(patients)
    return SandboxConfig(
        groups={f"demo-{part + 1}": GeneratedSource(patients, 1, part, count) for part in range(count)},
        clients=(RegisteredClient(CLIENT_ID, (client_key(folder / "private_key.pem"),)),),
        kickoff_window_seconds=_DAY_SECONDS - 3600,
        state_dir=folder / f"state-{SITE}",
        retry_after_seconds=1,
    )


def _next_day(console: Terminal, sandbox: RunningSandbox) -> None:
    import httpx

    answer = httpx.post(f"{sandbox.base_url}/sandbox/clock", json={"advance_seconds": _DAY_SECONDS}, timeout=30)
    answer.raise_for_status()
    console.print("A day has passed in the simulated Epic: its patients have changed a little.")


def _register(runtime: Runtime, sandbox: RunningSandbox) -> SiteSettings:
    from pipeline.commands.sandbox import CLIENT_ID, site_types
    from pipeline.core.settings import load_settings, register_site

    home = runtime.settings.home
    entry = {
        "fhir_url": sandbox.fhir_url,
        "client_id": CLIENT_ID,
        "private_key_file": home / "sandbox" / "private_key.pem",
        "time_zone": "America/Chicago",
        "groups": list(sandbox.state.config.groups),
        "resource_types": site_types(dict(sandbox.state.config.groups)),
        "poll_floor_seconds": 0.5,
        "kickoff_window_hours": _WINDOW_HOURS,
        "test_mode": True,
    }
    register_site(home, SITE, entry)
    return load_settings().site(SITE)


def _night(console: Terminal, runtime: Runtime) -> RunOutcome:
    from dagster import DagsterInstance

    from pipeline.orchestration.instance import prepare_instance
    from pipeline.orchestration.nightly import run_nightly

    folder = prepare_instance(runtime.settings)
    os.environ["DAGSTER_HOME"] = str(folder)
    with DagsterInstance.get() as instance, console.status("Dagster: kick-off") as status:
        return run_nightly(runtime, SITE, instance, lambda text: status.update(f"Dagster: {text}"))


def _refuse_failed(outcome: RunOutcome) -> None:
    """Raises NightFailed with the first line of each problem: the rest is in the runs, and may be a traceback."""
    from pipeline.core.errors import NightFailed

    if outcome.success:
        return
    problems = list(dict.fromkeys(problem.strip().partition("\n")[0] for problem in outcome.problems))
    named = " ".join(problems) or "A run failed without saying why."
    raise NightFailed(
        f"The night of the demonstration failed: {named}",
        "`epic-omop ui` shows its runs. When the cause is gone, run `epic-omop demo` again.",
    )


def _report(console: Terminal, runtime: Runtime, outcome: RunOutcome) -> None:
    from pipeline.commands.tables import print_load_report
    from pipeline.quality.report import load_report

    with runtime.connect() as connection:
        ids = [
            row[0]
            for row in connection.execute(
                f"SELECT export_id FROM export_job WHERE site = %s AND (export_id = ANY(%s) OR kind = '{ExportKind.REPLAY}'"
                " AND export_id > %s) ORDER BY export_id",
                (SITE, list(outcome.export_ids), min(outcome.export_ids, default=0)),
            ).fetchall()
        ]
        print_load_report(
            console, load_report(connection, runtime.settings.cdm_schema, runtime.settings.vocab_schema, ids)
        )


def _what_next(console: Terminal, runtime: Runtime) -> None:
    home = _shortest(runtime.settings.home)
    console.print()
    console.print(
        words(f"The files are under {home}/landing, the database is reached by ", bold("epic-omop db url"), "."),
        soft_wrap=True,
    )
    console.print("Try next (the commands are in .venv/bin):")
    for command, what in (
        ("epic-omop psql", "ask the database: select * from cdm.measurement limit 10; \\dv etl.*"),
        ("epic-omop ui", "Dagster's UI: the run that has just been, its assets, counts and rates"),
        ("epic-omop status", "where every site stands"),
        ("epic-omop dead-letters list", "what could not be loaded, and why"),
        ("make demo", "the next night: nearly every line is unchanged"),
    ):
        console.print(words("  ", bold(f"{command:28}"), f" {what}"), highlight=False, soft_wrap=True)


def _shortest(path: Path) -> str:
    """Relative to the working folder where that is shorter to read."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
