"""`epic-omop ui`: Dagster's webserver and daemon for people at this machine. What they show is in `orchestration/`."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.terminal import Terminal, bold, echo, words
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

    from pipeline.core.settings import Settings

__all__ = ["register"]

_HOST = "127.0.0.1"

#: Dagster gives each of its services 60 s to end before it kills them.
_SECONDS_TO_END = 130.0
_SECONDS_TO_END_CHILDREN = 5.0
_SECONDS_BETWEEN_LOOKS = 2.0


def register(app: typer.Typer) -> None:
    """Add `ui` to the program."""
    app.command("ui")(ui)


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000,
    only_prepare: Annotated[
        bool,
        typer.Option(
            "--only-prepare",
            help="Write EPIC_OMOP_HOME/dagster/dagster.yaml and end: for a Dagster that is started by other means.",
        ),
    ] = False,
) -> None:
    """Start Dagster: its UI on 127.0.0.1, and the daemon for schedules, sensors and queued runs. Ctrl-C ends both.

    The UI answers to pages of its own only: requests of other origins, for other hosts (EPIC_OMOP_UI_HOSTS) and changes
    by GET are refused.

    A change in sites.yaml is seen after "Reload definitions" in the UI (Deployment), or a restart.

    Example: epic-omop ui --port 3001
    """
    from pipeline.core.settings import load_settings
    from pipeline.orchestration.instance import prepare_instance

    settings = load_settings()
    folder = prepare_instance(settings)
    if only_prepare:
        echo(f"DAGSTER_HOME is prepared: {folder}")
        return
    _refuse_taken(port)
    _run(settings, folder, port)


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UsageError(
                f"Port {port} of {_HOST} cannot be used ({error.strerror}).",
                "Another Dagster may be running here; choose another port with --port.",
            ) from error


def _run(settings: Settings, folder: Path, port: int) -> None:
    from pipeline.orchestration.instance import dagster_environment

    # Also where this process was started with SIGINT ignored, as shells do in the background; children inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    services = subprocess.Popen(  # noqa: S603 - our own interpreter with fixed arguments
        _services_command(port),
        cwd=folder,  # Dagster would read, or complain of, files of the user's folder
        env=dagster_environment(settings, folder),
        start_new_session=True,  # Ctrl-C reaches this process alone, which ends the others in order
    )
    ended = threading.Event()
    threading.Thread(target=_say_when_ready, args=(settings, port, ended), daemon=True).start()
    try:
        code = _code_of(services)
    except KeyboardInterrupt:
        echo("Dagster is ending …")
        code = 0
    finally:
        ended.set()
        _end(services)
    if code:
        raise UsageError(f"Dagster ended by itself (exit code {code}).", "Its messages above say why.")


def _services_command(port: int) -> list[str]:
    """Its definitions by the name under which `site enable` keeps switches: by another, these would turn nothing."""
    from pipeline.orchestration.instance import LOCATION

    services = ("-m", "pipeline.orchestration.ui_services")
    return [sys.executable, *services, "-m", LOCATION, "-h", _HOST, "-p", str(port), "--log-level", "warning"]


def _code_of(services: subprocess.Popen[bytes]) -> int:
    """Wait until Dagster has ended. Its own command watches webserver and daemon, but not the code server, without which both
    wait for ever. Raises UsageError when that has died."""
    code_server: psutil.Process | None = None
    while True:
        try:
            return services.wait(_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            code_server = code_server or _code_server_of(services)
        if code_server is not None and not _runs(code_server) and services.poll() is None:
            raise UsageError(
                "Dagster's code server has died, without which nothing runs; Dagster is ended.",
                "Where no message above says why, it was killed, perhaps for lack of memory. Start epic-omop ui again: exports"
                " that were open are taken up.",
            )


def _code_server_of(services: subprocess.Popen[bytes]) -> psutil.Process | None:
    """None before it has started."""
    import psutil

    try:
        children = psutil.Process(services.pid).children()
        return next((child for child in children if "code-server" in child.cmdline()), None)
    except psutil.Error:
        return None


def _runs(process: psutil.Process) -> bool:
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _say_when_ready(settings: Settings, port: int, ended: threading.Event) -> None:
    import httpx

    url = f"http://{_HOST}:{port}"
    console = Terminal()
    console.print("Dagster is starting …")
    while not ended.wait(0.5):
        try:
            ready = httpx.get(f"{url}/server_info", timeout=5, trust_env=False).is_success
        except httpx.HTTPError:
            continue
        if ready:
            break
    else:
        return
    console.print(words("Dagster's UI is at ", bold(url), ". Ctrl-C ends it."))
    for page, what in (
        ("asset-groups", "sites' landing and load, CDM tables"),
        ("runs", "what ran, and what it did"),
        ("automation", "schedules and sensors: on, off"),
    ):
        console.print(f"  {f'{url}/{page}':35} {what}")
    if not settings.sites:
        console.print(f"No sites yet: write {settings.sites_file}, or run `epic-omop sandbox serve`.", style="yellow")


def _end(services: subprocess.Popen[bytes]) -> None:
    """Interrupt Dagster, wait for its own orderly end, and end whatever it leaves behind."""
    import psutil

    try:
        children = psutil.Process(services.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    if services.poll() is None:
        services.send_signal(signal.SIGINT)
        try:
            services.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            services.kill()
    for child in children:
        try:
            child.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(children, timeout=_SECONDS_TO_END_CHILDREN)
    for child in alive:
        child.kill()
