"""`epic-omop sandbox`: the simulated Epic and its synthetic patients, for people.

Only what a terminal needs is here; the work is done in `pipeline/sandbox`.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from pipeline.commands.terminal import Terminal, document, echo, progress
from pipeline.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pipeline.core.settings import Settings
    from pipeline.sandbox.config import ResourceSource, SandboxConfig
    from pipeline.sandbox.faults import Fault

__all__ = ["app", "site_types"]

CLIENT_ID = "epic-omop-sandbox"
DEFAULT_PATIENTS = 100

app = typer.Typer(
    no_args_is_help=True,
    help="A simulated Epic on this machine: SMART tokens, Group $export, NDJSON files of synthetic patients.\n\n"
    "`serve` runs it until Ctrl-C and enters it as a site, so that `epic-omop run --site sandbox` works at once; "
    "`generate` only writes the patients' files.",
)


@app.command()
def serve(
    *,
    patients: Annotated[
        int | None, typer.Option(min=1, help="Number of synthetic patients.", show_default=str(DEFAULT_PATIENTS))
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Serve this folder of <ResourceType>*.ndjson[.gz] files instead, byte for byte."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed gives other patients.")] = 1,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. 0.0.0.0 lets other machines and containers in; sites.yaml then names this"
            " machine's host name. Patients are synthetic, but do not do this with --data of your own on a shared network."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8090,
    site: Annotated[str, typer.Option(help="Name of the site in sites.yaml.")] = "sandbox",
    group: Annotated[
        list[str] | None,
        typer.Option(help="Group id; may be repeated. Synthetic patients are shared out among the groups."),
    ] = None,
    window_hours: Annotated[
        float, typer.Option(min=0, help="One kick-off for a client and group in this time; 0 for no such rule.")
    ] = 24,
    time_zone: Annotated[
        str | None,
        typer.Option(help="The site's zone.", show_default="America/Chicago; UTC with --data"),
    ] = None,
    faults: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of faults to play: refusals, cut and damaged files, wrong manifests and more."
            " `epic-omop sandbox faults` prints an example with every kind."
        ),
    ] = None,
) -> None:
    """Run the simulated Epic until Ctrl-C.

    Its clock, jobs and files outlive a restart. The first start makes a key pair for the local client. The site's
    entry in sites.yaml is written at every start, because the port is in it.

    Example: epic-omop sandbox serve --patients 100
    """
    from pipeline.core.settings import load_settings
    from pipeline.sandbox.faults import load_faults

    settings = load_settings()
    _refuse_real_site(settings, site)
    groups = _groups(patients, data, seed, list(dict.fromkeys(group or ["all"])))
    zone = time_zone or ("UTC" if data else "America/Chicago")
    _serve_site(
        SandboxSite(settings.home, site, groups, zone, window_hours, load_faults(faults) if faults else ()), host, port
    )


@dataclass(frozen=True)
class SandboxSite:
    """The site that the simulated Epic plays, and the home in which it is entered."""

    home: Path
    name: str
    groups: Mapping[str, ResourceSource]
    time_zone: str
    window_hours: float
    faults: Sequence[Fault]

    @property
    def folder(self) -> Path:
        return self.home / "sandbox"

    @property
    def key_file(self) -> Path:
        return self.folder / "private_key.pem"

    def config(self) -> SandboxConfig:
        from pipeline.sandbox.config import RegisteredClient, SandboxConfig
        from pipeline.sandbox.keys import client_key

        return SandboxConfig(
            groups=self.groups,
            clients=(RegisteredClient(CLIENT_ID, (client_key(self.key_file),)),),
            kickoff_window_seconds=self.window_hours * 3600,
            state_dir=self.folder / f"state-{self.name}",
            faults=tuple(self.faults),
        )

    def entry(self, fhir_url: str) -> dict[str, Any]:
        """Of sites.yaml."""
        window = {"kickoff_window_hours": self.window_hours} if self.window_hours > 0 else {}
        return {
            "fhir_url": fhir_url,
            "client_id": CLIENT_ID,
            "private_key_file": str(self.key_file),
            "time_zone": self.time_zone,
            "groups": list(self.groups),
            "resource_types": site_types(self.groups),
            "poll_floor_seconds": 1,
            "requests_per_second": 200,
            "test_mode": True,
            **window,
        }


def _serve_site(site: SandboxSite, host: str, port: int) -> None:
    from pipeline.core.settings import register_site
    from pipeline.sandbox.server import FHIR_PATH
    from pipeline.sandbox.server import serve as run_server

    def ready(listening: str) -> None:
        base_url = _reachable(listening)
        sites_file = register_site(site.home, site.name, site.entry(base_url + FHIR_PATH))
        _say_ready(base_url, listening, site.name, sites_file, site.groups)
        if site.faults:
            kinds = ", ".join(dict.fromkeys(one.fault for one in site.faults))
            echo(f"Faults, in the order of their file for each kind: {kinds}.")

    run_server(site.config(), host, port, ready)
    echo("The simulated Epic has stopped. Its jobs and its clock are kept for the next start.")


@app.command("faults")
def show_faults() -> None:
    """Print an example of a faults file for `serve --faults`: every kind, with comments.

    Take the lines that you want to see: `epic-omop sandbox faults > faults.yaml`, edit, `serve --faults faults.yaml`.
    Each fault of a request says how many such requests pass first (`after`) and how many it disturbs (`times`).

    Example: epic-omop sandbox faults > faults.yaml
    """
    from pipeline.sandbox.faults import EXAMPLE_FILE

    document(EXAMPLE_FILE.read_text(encoding="utf-8"))


@app.command()
def generate(
    out: Annotated[Path, typer.Option(help="Folder for the <ResourceType>.ndjson files; made if it is missing.")],
    patients: Annotated[int, typer.Option(min=1)] = DEFAULT_PATIENTS,
    seed: Annotated[int, typer.Option(help="Another seed gives other patients.")] = 1,
    day: Annotated[int, typer.Option(min=0, help="So many days later: about 1 % of the lines are new or changed.")] = 0,
    as_of: Annotated[
        datetime, typer.Option(formats=["%Y-%m-%d"], help="The day on which the world begins.")
    ] = datetime(2026, 1, 1),  # noqa: DTZ001 - only its date is used
) -> None:
    """Write the synthetic patients as NDJSON files, one a resource type. The same options give the same bytes.

    Example: epic-omop sandbox generate --patients 20 --out sample
    """
    if any(out.glob("*.ndjson*")):
        raise UsageError(f"{out} already holds NDJSON files.", "Name an empty or a new folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = _write_files(out, patients, seed, as_of.date(), day)
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror}).", "Name another folder with --out.") from error
    echo(f"{lines:,} resources of {patients:,} synthetic patients are in {out}.")


def _reachable(base_url: str) -> str:
    """An address for clients: one that means "all of this machine's" is replaced by the machine's name."""
    for everywhere in ("//0.0.0.0:", "//[::]:"):
        base_url = base_url.replace(everywhere, f"//{socket.gethostname()}:")
    return base_url


def _refuse_real_site(settings: Settings, site: str) -> None:
    known = settings.sites.get(site)
    if known is not None and known.fhir_url is not None and not known.test_mode:
        raise UsageError(
            f"{site!r} in {settings.sites_file} is a real site; the sandbox does not overwrite it.",
            "Choose another name with --site.",
        )


def _groups(patients: int | None, data: Path | None, seed: int, names: list[str]) -> dict[str, ResourceSource]:
    from pipeline.sandbox.sources import FolderSource, GeneratedSource

    if data is not None:
        if patients is not None:
            raise UsageError("--patients and --data exclude each other.", "Give one of the two.")
        source = FolderSource(data)
        return dict.fromkeys(names, source)
    count = patients or DEFAULT_PATIENTS
    return {name: GeneratedSource(count, seed, part, len(names)) for part, name in enumerate(names)}


def site_types(groups: Mapping[str, ResourceSource]) -> list[str]:
    return list(dict.fromkeys(kind for source in groups.values() for kind in source.resource_types()))


def _say_ready(
    base_url: str, listening: str, site: str, sites_file: Path, groups: Mapping[str, ResourceSource]
) -> None:
    from pipeline.sandbox.server import FHIR_PATH

    echo(f"The simulated Epic is at {base_url}{FHIR_PATH}, group {', '.join(groups)}. Ctrl-C stops it.")
    echo(f"Site {site!r} is entered in {sites_file}. In another terminal:")
    echo(f"  epic-omop run --site {site}")
    echo("A group can be exported once in the window. To move the sandbox's clock on by a day:")
    echo(f"  curl -X POST {listening}/sandbox/clock -d '{{\"advance_seconds\": 86400}}'")


def _write_files(out: Path, patients: int, seed: int, as_of: date, day: int) -> int:
    """Number of lines written."""

    from pipeline.sandbox.generator import generate as generated

    files: dict[str, BinaryIO] = {}
    count = 0
    with ExitStack() as stack:
        bar = stack.enter_context(progress(Terminal()))
        task = bar.add_task("Patients", total=patients)
        for resource_type, line in generated(patients, seed, as_of, day):
            if resource_type not in files:
                files[resource_type] = stack.enter_context((out / f"{resource_type}.ndjson").open("wb"))
            files[resource_type].write(line + b"\n")
            count += 1
            if resource_type == "Patient":
                bar.advance(task)
    return count
