"""Makes `<release>.tar.xz`: a small home and its database, made by that release's own code.

    python -m tests.released.make v0.2.0

The release is taken from its tag into a temporary folder, and run with the packages of this environment. The archive holds
`database.sql` (pg_dump, plain) and `home/` (landing, settings, the key of identifiers): all of it synthetic.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pipeline.warehouse.embedded.binaries import installed_binaries
from tests.integration.support import encounter, observation, patient, reference, write_folder

PROJECT = Path(__file__).resolve().parents[2]
#: What of the home belongs to it; the rest is made again or is PostgreSQL's.
KEPT = ("landing", "seen", "known", "identifier.key", "time_zone", "access_log.anchor")

#: A night: two persons, a value that is none, and a line whose person is missing.
SAMPLE = {
    "Patient": [patient(), patient("p2")],
    "Encounter": [encounter(), encounter("e2", person="p2")],
    "Observation": [
        observation(encounter=reference("Encounter", "e1")),
        observation("o2", person="p2"),
        observation("wrong", valueQuantity={"value": "12"}),
        observation("waiting", person="p3"),
    ],
}

_RUN = "import sys; from pipeline.commands.cli import main; sys.argv[0] = 'epic-omop'; main()"


def make(release: str, target: Path) -> None:
    """Write the archive of a release. Raises CalledProcessError where one of its commands fails."""
    with tempfile.TemporaryDirectory(prefix="epic-omop-released-") as name:
        folder = Path(name)
        code, home, sample = folder / "code", folder / "home", folder / "sample"
        code.mkdir()
        archive = subprocess.run(("git", "archive", release), cwd=PROJECT, check=True, capture_output=True).stdout
        subprocess.run(("tar", "x", "-C", str(code)), input=archive, check=True)
        write_folder(sample, SAMPLE)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("EPIC_OMOP_")}
        environment |= {"EPIC_OMOP_HOME": str(home), "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}

        def run(*arguments: str) -> str:
            command = (sys.executable, "-c", _RUN, *arguments)
            done = subprocess.run(command, cwd=code, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            return done.stdout

        try:
            run("db", "init")
            run("vocabulary", "load", str(code / "mappings" / "demo_vocabulary"))
            for _ in range(2):
                run("ingest", "--site", "one", "--from", str(sample))
            run("verify")
            url = run("db", "url").strip()
            dump = [installed_binaries().program("pg_dump"), f"--dbname={url}", "--no-owner", "--no-privileges"]
            with (folder / "database.sql").open("wb") as file:
                subprocess.run(dump, check=True, stdout=file)
        finally:
            run("db", "stop")
        _pack(folder, target)


def _pack(folder: Path, target: Path) -> None:
    def plain(item: tarfile.TarInfo) -> tarfile.TarInfo:
        item.uid = item.gid = 0
        item.uname = item.gname = ""
        return item

    kept = [folder / "home" / name for name in KEPT]
    with tarfile.open(target, "w:xz") as archive:
        for path in [folder / "database.sql", *(path for path in kept if path.exists())]:
            archive.add(path, path.relative_to(folder), filter=plain)


if __name__ == "__main__":
    made = Path(__file__).with_name(f"{sys.argv[1]}.tar.xz")
    make(sys.argv[1], made)
    shutil.copystat(__file__, made)
    sys.stdout.write(f"{made}: {made.stat().st_size:,} bytes\n")
