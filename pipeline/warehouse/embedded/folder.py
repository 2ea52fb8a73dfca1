"""Where an embedded database lies on disk, and who may reach it: folders, their owners and modes, access rules.

Nothing here starts or stops a process. For an ordinary user everything is in `<home>/postgres`. For root it is in
a folder of its own under /var/lib/epic-omop, because the server runs under another account, which must not be let
into the home; `<home>/postgres.location` names that folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from pipeline.core.errors import WarehouseError
from pipeline.core.files import replace_file
from pipeline.warehouse.embedded.binaries import (
    SYSTEM_FOLDER,
    Account,
    account_of,
    current_account,
    make_system_folder,
    server_account,
)

__all__ = [
    "CLIENT_ROLE",
    "DATABASE",
    "OWNER_ROLE",
    "ServerFolder",
    "TcpAddress",
    "abandoned_folders",
    "find_server_folder",
    "make_private_folder",
    "open_server_folder",
]

DATABASE = "epic_omop"
#: Superuser of the embedded server; reached through the socket, by the account that started it.
OWNER_ROLE = "epic_omop"
#: The role of `epic-omop db serve`, which logs in by TCP with a password.
CLIENT_ROLE = "omop_client"

_DEFAULT_PORT = 5432
_MAP = "epic_omop"
#: sockaddr_un holds 107 bytes on Linux and 103 on macOS, of which `/.s.PGSQL.65535` takes 15.
_LONGEST_SOCKET_FOLDER = 88
#: In `host=` a comma parts hosts, and PostgreSQL splits its own list of folders in the same way.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


@dataclass(frozen=True)
class TcpAddress:
    """Where `epic-omop db serve` lets the server listen besides its socket."""

    host: str
    port: int


@dataclass(frozen=True)
class ServerFolder:
    """One embedded server's folder. `socket` is apart where the path would be too long for a socket."""

    path: Path
    socket: Path

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def log(self) -> Path:
        return self.path / "postgres.log"

    @property
    def password_file(self) -> Path:
        return self.path / "tcp-password"

    @property
    def access_rules(self) -> Path:
        return self.path / "pg_hba.conf"

    @property
    def account_map(self) -> Path:
        return self.path / "pg_ident.conf"

    @property
    def account(self) -> Account:
        """The account that the server runs under. Once there is data, its owner, whatever accounts come later."""
        return account_of(self.data.lstat().st_uid) if self.data.exists() else server_account()

    @property
    def tcp(self) -> TcpAddress | None:
        """The TCP address that `serve_tcp` asked for, until `stop`."""
        try:
            return TcpAddress(**json.loads(self._tcp_file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None

    @property
    def _tcp_file(self) -> Path:
        return self.path / "tcp.json"

    def set_tcp(self, address: TcpAddress | None) -> None:
        if address is None:
            self._tcp_file.unlink(missing_ok=True)
        else:
            _write_whole(self._tcp_file, json.dumps(asdict(address)))

    @property
    def port(self) -> int:
        """The port, which is also part of the socket's name."""
        return self.tcp.port if self.tcp else _DEFAULT_PORT

    @property
    def url(self) -> str:
        """For psycopg, psql and SQLAlchemy (there with the scheme `postgresql+psycopg`)."""
        return f"postgresql://{OWNER_ROLE}@/{DATABASE}?host={quote(str(self.socket), safe='')}&port={self.port}"

    def take_lock(self) -> int | None:
        """The descriptor of the server's lock, or None while any process of the server lives.

        The server inherits the descriptor and holds the lock until the last of its processes, also one that
        outlives a killed postmaster, has ended. A process id in a file could not show that: ids are used again.
        """
        descriptor = os.open(self.path / "running.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def postmaster(self) -> psutil.Process | None:
        """The server's first process, if the one that `postmaster.pid` names is really it."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().partition("\n")[0])
            process = psutil.Process(pid)
            genuine = process.name() == "postgres" and process.cwd() == str(self.data)
        except (OSError, ValueError, psutil.Error):
            return None
        return process if genuine else None

    def remove_stale_files(self) -> None:
        """Remove what a killed server left. Only for the holder of the lock.

        PostgreSQL would take a process id that is now another program's for a running server.
        """
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for file in self.socket.glob(".s.PGSQL.*"):
            file.unlink(missing_ok=True)

    def write_access_rules(self) -> None:
        """Who may connect: through the socket the account that runs epic-omop; by TCP the client role, and members of the
        roles that look (`pipeline/warehouse/roles.py`)."""
        rules = [f"local all all peer map={_MAP}"]
        if self.tcp:
            members = ",".join((CLIENT_ROLE, "+omop_reader", "+omop_steward", "+omop_auditor"))
            rules.append(f"host {DATABASE} {members} all scram-sha-256")
        _write_readable(self.access_rules, rules)
        name = current_account().name.replace('"', '""')
        _write_readable(self.account_map, [f'{_MAP} "{name}" {OWNER_ROLE}'])


def _write_whole(file: Path, content: str) -> None:
    """Others read these files without a lock: they find the old content or the new, never a part."""
    replace_file(file, content.encode())


def _write_readable(file: Path, lines: list[str]) -> None:
    """Readable by the server's account; there is no secret in them, and their folder is closed to others' listing."""
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    file.chmod(0o644)


def find_server_folder(home: Path) -> ServerFolder | None:
    """The home's server folder if there is one. `home` is absolute.

    Raises WarehouseError if it is another user's, or if its pointer leads nowhere.
    """
    own = home / "postgres"
    if own.exists():
        _refuse_other_owner(own)
        return ServerFolder(own, _socket_folder(own))
    pointer = _pointer(home)
    if not pointer.exists():
        return None
    _refuse_other_owner(pointer)
    path = Path(pointer.read_text(encoding="utf-8").strip())
    if path.parent != SYSTEM_FOLDER or not path.is_dir():
        raise WarehouseError(
            f"The database of {home} should be in {path} (says {pointer}), but that folder is not there.",
            f"In a container, keep {SYSTEM_FOLDER} on a volume as well. To begin with an empty database, "
            f"delete {pointer}.",
        )
    return ServerFolder(path, path / "socket")


def open_server_folder(home: Path) -> ServerFolder:
    """The home's server folder, made if need be, with the socket's folder. Only while holding the start lock.

    Raises WarehouseError if a folder belongs to someone else or cannot be made.
    """
    try:
        folder = find_server_folder(home) or _make_server_folder(home)
        if os.geteuid() == 0:
            (folder.path / "home").write_text(f"{home}\n", encoding="utf-8")
        make_private_folder(folder.socket, folder.account)
    except OSError as error:
        raise WarehouseError(
            f"The database's folder for {home} cannot be made or used ({error.strerror}: {error.filename}).",
            f"Set EPIC_OMOP_HOME to a folder that you may write to; for root, {SYSTEM_FOLDER} must be writable too.",
        ) from error
    return folder


def _make_server_folder(home: Path) -> ServerFolder:
    if os.geteuid() != 0:
        path = home / "postgres"
        make_private_folder(path, current_account())
        return ServerFolder(path, _socket_folder(path))
    for left_over in SYSTEM_FOLDER.glob(f"{_digest(home)}-*"):
        with contextlib.suppress(OSError):  # not empty: another database
            left_over.rmdir()
    # The random part keeps a new home from finding the database of a deleted one at the same path.
    path = SYSTEM_FOLDER / f"{_digest(home)}-{secrets.token_hex(4)}"
    make_system_folder(path, 0o711)
    _write_whole(_pointer(home), f"{path}\n")
    return ServerFolder(path, path / "socket")


def abandoned_folders(home: Path) -> list[ServerFolder]:
    """Root's server folders that were made for this path, when the home that is there now knows of none."""
    if os.geteuid() != 0 or not SYSTEM_FOLDER.is_dir() or find_server_folder(home):
        return []
    records = SYSTEM_FOLDER.glob(f"{_digest(home)}-*/home")
    return [
        ServerFolder(record.parent, record.parent / "socket")
        for record in records
        if record.read_text(encoding="utf-8").strip() == str(home)
    ]


def _pointer(home: Path) -> Path:
    return home / "postgres.location"


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def _socket_folder(path: Path) -> Path:
    """Beside the data where the path is short and plain enough, else under /tmp.

    Not $XDG_RUNTIME_DIR or $TMPDIR: they differ between a login and cron, and the former ends with the login.
    """
    inside = path / "socket"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET_FOLDER and _PLAIN_PATH.fullmatch(str(inside)):
        return inside
    return Path("/tmp") / f"epic-omop-{os.geteuid()}-{_digest(path)}"  # noqa: S108 - see make_private_folder


def make_private_folder(folder: Path, account: Account) -> None:
    """Make a folder that only `account` (and root) can enter.

    Raises WarehouseError if something else is in its place: in /tmp anyone may have put it there.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (account.uid, os.geteuid()):
        raise WarehouseError(
            f"{folder} must be a folder of user {account.name}, but it is something else or another user's.",
            "Find out who made it and remove it; then try again.",
        )
    if found.st_mode & 0o777 != 0o700:
        folder.chmod(0o700)
    if found.st_uid != account.uid:
        os.chown(folder, account.uid, account.gid, follow_symlinks=False)


def _refuse_other_owner(path: Path) -> None:
    owner = path.lstat().st_uid
    if owner != os.geteuid():
        raise WarehouseError(
            f"The database of {path.parent} belongs to user id {owner}, not to user id {os.geteuid()}.",
            "Run epic-omop as that user, or set EPIC_OMOP_HOME to another folder.",
        )
