"""`epic-omop keys`: make a signing key, the public JWK Set to host, and look at both. The work is in `pipeline/extract`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.output import JsonOption
from pipeline.commands.terminal import Terminal, document, echo
from pipeline.core.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from pipeline.extract.smart.keys import SigningKey

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Signing keys: `new` makes one, `jwks` writes the public JWK Set that the site reads, `check` looks at both.\n\n"
    "To change keys: make a new one, host both (`jwks OLD NEW`), name the new one as private_key_file and the old one "
    "as previous_private_key_file in sites.yaml; when the site knows the new one, take the old one out of both.",
)

_Files = Annotated[list[Path] | None, typer.Argument(help="Private keys: PEM, JWK or JWK Set.", show_default=False)]
_Site = Annotated[str | None, typer.Option("--site", help="The keys of this site of sites.yaml instead.")]


class Kind(StrEnum):
    rsa = "rsa"
    ec = "ec"


@app.command()
def new(
    out: Annotated[Path, typer.Option("--out", help="File for the private key; it must not exist.")],
    kind: Annotated[Kind, typer.Option("--type", help="rsa signs RS384, ec (P-384) signs ES384.")] = Kind.rsa,
    bits: Annotated[int, typer.Option(help="Of an RSA key; at least 2048.")] = 3072,
) -> None:
    """Make a private key (PEM, mode 0600) and say what to do with it.

    Example: epic-omop keys new --out key.pem
    """
    from pipeline.extract.smart.key_files import new_key, write_new_key
    from pipeline.extract.smart.keys import key_from_file

    write_new_key(out, new_key(kind.value, bits))
    key = key_from_file(out)
    echo(f"{out} is made: {key.algorithm}, kid {key.key_id}. Keep it secret, and out of backups that others read.")
    echo(f"Public part: epic-omop keys jwks {out} --out jwks.json — host it over https, or upload it to Epic.")
    echo("A site may take hours to days until it knows a new key.")


@app.command()
def jwks(
    files: _Files = None,
    site: _Site = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write here instead of to standard output.")] = None,
) -> None:
    """Write the JWK Set of the public keys, for the customer to host. It never holds a private part.

    Example: epic-omop keys jwks key.pem --out jwks.json
    """
    import orjson

    from pipeline.extract.smart.key_files import key_set

    keys = [key for load in _loaders(files, site, None) for key in load()]
    text = orjson.dumps(key_set(keys), option=orjson.OPT_INDENT_2).decode()
    if out is None:
        document(text + "\n")
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
        out.chmod(0o644)  # public: a web server reads it
    except OSError as error:
        raise UsageError(f"{out} cannot be written ({error.strerror}).") from error
    echo(f"{out} holds {len(keys)} public keys: {', '.join(key.key_id for key in keys)}.")


@app.command()
def check(
    files: _Files = None,
    site: _Site = None,
    key_id: Annotated[str | None, typer.Option("--key-id", help="Which key of a JWK Set, or the kid of a PEM.")] = None,
    jwks_url: Annotated[
        str | None, typer.Option("--jwks-url", help="Where the public keys are hosted. Default: the site's jwks_url.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with private keys and with the hosted JWK Set. Exit code 1 when something is.

    Example: epic-omop keys check --site north
    """
    from pipeline.commands.findings import print_findings
    from pipeline.core.clock import SystemClock
    from pipeline.core.findings import Finding, any_failed
    from pipeline.core.settings import load_settings
    from pipeline.extract.smart.key_files import check_hosted_keys, check_key

    findings: list[Finding] = []
    keys: list[SigningKey] = []
    known = load_settings().site(site) if site else None
    for load in _loaders(files, site, key_id):
        try:
            loaded = load()
        except ConfigurationError as error:
            findings.append(Finding("private key", "failed", error.message, error.advice))
        else:
            keys += loaded
            findings += [check_key(key) for key in loaded]
    url = jwks_url or (known.jwks_url if known else None)
    if url:
        findings += check_hosted_keys(url, keys, SystemClock(), known)
    print_findings(Terminal(), findings, "Signing keys", as_json=as_json)
    if any_failed(findings):
        raise typer.Exit(1)


def _loaders(
    files: list[Path] | None, site: str | None, key_id: str | None
) -> list[Callable[[], Sequence[SigningKey]]]:
    """One for each file, or one for the keys of a site; a key that cannot be used raises ConfigurationError."""
    from pipeline.core.settings import load_settings
    from pipeline.extract.smart.keys import load_signing_keys

    if bool(files) == bool(site):
        raise UsageError("Name key files, or a site with --site.")
    if site:
        known = load_settings().site(site)
        return [lambda: load_signing_keys(known)]
    return [partial(_of_file, file, key_id) for file in files or []]


def _of_file(file: Path, key_id: str | None) -> Sequence[SigningKey]:
    from pipeline.extract.smart.keys import key_from_file

    return [key_from_file(file, key_id)]
