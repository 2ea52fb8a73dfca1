"""A machine for the services of docker-compose.yml and deploy/systemd, without Docker and systemd: Linux namespaces.

Inside, `/` is read-only, with the project at /opt/epic-omop and only the given folders and /tmp writable; the network is a
loopback of its own, in which the names of services are known and every port is free. So the exact commands can run, several
worlds beside each other. As root or, where the system lets users make namespaces, as anybody.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from psycopg.conninfo import conninfo_to_dict

__all__ = ["ServiceWorld", "service_world", "why_not"]

ROOT = Path(__file__).resolve().parents[1]
_IN_FOLDER = ("sh", "-c", 'cd "$1" && shift && exec "$@"', "sh")
_AS_ROOT: tuple[str, ...] = ("unshare", "--mount", "--net")
_AS_USER = ("unshare", "--map-current-user", "--keep-caps", "--user", "--mount", "--net")

#: Arguments: the new root, then pairs of a folder and where it is to be seen, writable. Standard input is kept open by us.
_SET_UP = """
set -e
new=$1; shift
mount -t tmpfs -o mode=0755 tmpfs "$new"
for name in bin dev etc lib lib64 lib32 proc sbin sys usr; do
  if [ -L "/$name" ]; then cp -P "/$name" "$new/$name"
  elif [ -d "/$name" ]; then mkdir "$new/$name"; mount --rbind "/$name" "$new/$name"; fi
done
mkdir -p "$new/tmp" "$new/opt/epic-omop" "$new/run"
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"
for place in "$project" "$python" "$base"; do
  if [ ! -e "$new$place" ]; then
    mkdir -p "$new$place"; mount --rbind "$place" "$new$place"; mount -o remount,bind,ro "$new$place"
  fi
done
for entry in "$project"/*; do ln -s "$entry" "$new/opt/epic-omop/"; done
ln -s "$python" "$new/opt/epic-omop/.venv"
while [ $# -gt 0 ]; do
  mkdir -p "$new$2"
  mount --bind "$1" "$new$2"
  shift 2
done
mount --bind "$hosts" "$new/etc/hosts"
for name in bin etc lib lib64 lib32 sbin usr; do
  if mountpoint -q "$new/$name"; then mount -o remount,bind,ro "$new/$name"; fi
done
mount -o remount,ro "$new"
"$python/bin/python" -c '
import fcntl, socket, struct
with socket.socket() as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up
'
echo ready
exec chroot "$new" sleep infinity
"""

#: Takes connections at 127.0.0.1:5432 and passes them on to a server's socket: `postgres`, as services know it.
_FORWARDER = """
import socket, sys, threading
def carry(one, other):
    try:
        while data := one.recv(65536):
            other.sendall(data)
    except OSError:
        pass
    for end in (one, other):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
with socket.create_server(("127.0.0.1", 5432)) as server:
    print("listening", flush=True)
    while True:
        client, _ = server.accept()
        there = socket.socket(socket.AF_UNIX)
        there.connect(sys.argv[1])
        for pair in ((client, there), (there, client)):
            threading.Thread(target=carry, args=pair, daemon=True).start()
"""


def why_not() -> str:
    """Why there can be no such world here; empty where there can."""
    if sys.platform != "linux" or not all(map(shutil.which, ("unshare", "nsenter", "mount", "mountpoint", "chroot"))):
        return "it needs Linux with util-linux"
    tried = subprocess.run([*_unshare(), "true"], check=False, capture_output=True, text=True, timeout=30)
    return "" if tried.returncode == 0 else f"this system lets nobody make namespaces: {tried.stderr.strip()}"


def _unshare() -> tuple[str, ...]:
    return _AS_ROOT if os.geteuid() == 0 else _AS_USER


@dataclass
class ServiceWorld:
    """`folder` is outside; logs of services are kept there."""

    folder: Path
    pid: int
    working_folder: str
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a service with exactly these variables (and a PATH with the program's); its output goes to its log."""
        with self.log(name).open("ab") as log:
            process = subprocess.Popen(
                [*self._enter(), *command], env=_with_path(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd="/", start_new_session=True,
            )  # fmt: skip
        self.running[name] = process
        return process

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._enter(), *command], env=_with_path(environment), check=False, capture_output=True, text=True, cwd="/",
            timeout=240,
        )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_healthy(self, name: str, check: Sequence[str], environment: Mapping[str, str]) -> None:
        """Until the service's own health check passes; it must not have ended meanwhile."""
        end = time.monotonic() + 240
        while True:
            service = self.running[name]
            assert service.poll() is None, f"{name} ended: {self.log(name).read_text()[-3000:]}"
            looked = self.run(check, environment)
            if looked.returncode == 0:
                return
            assert time.monotonic() < end, f"{name}: {looked.stdout}{looked.stderr}{self.log(name).read_text()[-3000:]}"
            time.sleep(4)

    def wait_listening(self, port: int) -> None:
        """Until a service has opened the port: dearer checks than a look at the kernel's table come after that."""
        end, listening = time.monotonic() + 240, f":{port:04X} "
        while not any(
            listening in line and " 0A " in line for line in Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()
        ):
            assert time.monotonic() < end, f"nobody listens on {port}: {list(self.running)}"
            time.sleep(0.2)

    def stop(self, name: str, seconds: float = 120) -> int:
        """SIGTERM to the service's own process, as `docker stop` and systemd send it; its exit code."""
        process = self.running.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(seconds)

    def _enter(self) -> tuple[str, ...]:
        as_user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return (
            "nsenter",
            "--target",
            str(self.pid),
            *as_user,
            "--mount",
            "--net",
            "--root",
            *_IN_FOLDER,
            self.working_folder,
        )


def _with_path(environment: Mapping[str, str]) -> dict[str, str]:
    # Tests that leave processes behind are found by the session's variable.
    session = {name: value for name, value in os.environ.items() if name.startswith("EPIC_OMOP_TEST_")}
    return {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8", **session, **environment}


@contextmanager
def service_world(
    folder: Path, places: Mapping[str, Path], names: Sequence[str], database_url: str
) -> Iterator[ServiceWorld]:
    """`places`: folders by where they are inside, writable; `names`: hosts that mean this world's loopback.

    Services begin in the first of `places`. The database's server is at 127.0.0.1:5432 inside.
    """
    hosts, new = folder / "hosts", folder / "root"
    new.mkdir(parents=True)
    hosts.write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *names)))
    server = Path(str(conninfo_to_dict(database_url)["host"]))
    bound = {str(server): server, **places}
    pairs = [part for inside, outside in bound.items() for part in (str(outside), inside)]
    environment = {
        **os.environ,
        "project": str(ROOT),
        "python": sys.prefix,
        "base": sys.base_prefix,
        "hosts": str(hosts),
    }
    holder = subprocess.Popen(
        [*_unshare(), "sh", "-c", _SET_UP, "sh", str(new), *pairs],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stderr is not None
    world = ServiceWorld(folder, holder.pid, next(iter(places)))
    try:
        assert holder.stdout.readline() == b"ready\n", holder.stderr.read().decode()
        port = conninfo_to_dict(database_url).get("port", "5432")
        world.start("postgres", [sys.executable, "-c", _FORWARDER, str(server / f".s.PGSQL.{port}")], {})
        end = time.monotonic() + 60
        while "listening" not in world.log("postgres").read_text():
            assert time.monotonic() < end, world.log("postgres").read_text()
            time.sleep(0.1)
        yield world
    finally:
        for process in world.running.values():
            _end(process)
        holder.kill()
        holder.wait()
        holder.stdout.close()
        holder.stderr.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """The service and all that it has started."""
    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.terminate()
        _, alive = psutil.wait_procs(family, timeout=30)
        for one in alive:
            one.kill()
    process.wait(30)
