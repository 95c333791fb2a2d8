"""One database in the hands of crmbackup, and whether two databases hold the same, as MariaDB's own programs see them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from scripts import schema_rows_mysql as generated
from tests.mariadb import MariadbServer
from tests.support_mysql_crm import PASSWORD

PROGRAM = Path(sys.executable).with_name("crmbackup")
#: What a backup says when it does not go by the binary log.
_READS_ALL = "all tables are read"


def run(argv: list[object], **more: object) -> subprocess.CompletedProcess[str]:
    """A program that must succeed. Raises SystemExit."""
    done = subprocess.run(  # type: ignore[call-overload]
        list(map(str, argv)), check=False, capture_output=True, encoding="utf-8", errors="surrogateescape", **more
    )
    if done.returncode:
        shown = f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}".encode("utf-8", "replace").decode()
        raise SystemExit(f"{' '.join(map(str, argv))} ended with {done.returncode}\n{shown}")
    return done


def client(server: MariadbServer, program: str, *arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    """One of MariaDB's programs, as root. Raises SystemExit."""
    socket = dict(server.server().options)["socket"]
    return run([program, "--no-defaults", "--user=root", f"--socket={socket}", *arguments], **more)


class Life:
    """One database, its policy and its repository. It is read as the user that docs/mysql.md tells to make.

    log: whether incrementals may go by the binary log. more: of the policy.
    """

    def __init__(self, server: MariadbServer, database: str, work: Path, *, log: bool, more: str = "") -> None:
        self.way = "by the log" if log else "by deduplication"
        self.work = work / self.way.split()[-1]
        self.work.mkdir()
        self.policy = self.work / "try.yaml"
        secret = self.work / "password"
        secret.write_text(PASSWORD)
        url = server.url(database, "crmbackup")
        self.policy.write_text(
            f'version: 1\nname: try\nsource: {{type: mysql, url: "{url}", binlog: {str(log).lower()},'
            f' password: {{file: "{secret}"}}}}\n'
            f'repository: {{url: "{self.work}/repository", identity: {{file: "{self.work}/identity.txt"}}}}\n{more}'
        )
        self._log = log
        self.crmbackup("init", self.policy, "--no-passphrase", "--identity-out", self.work / "identity.txt")

    def crmbackup(self, *arguments: object) -> list[dict[str, object]]:
        """Its lines. Raises SystemExit."""
        own = {"CRMBACKUP_CONFIG_DIR": f"{self.work}/config", "CRMBACKUP_STATE_DIR": f"{self.work}/state"}
        done = run([PROGRAM, *arguments, "--json"], env={**os.environ, **own})
        return [json.loads(line) for line in done.stdout.splitlines()]

    def backup(self, kind: str) -> None:
        """kind: full or incremental. Raises SystemExit for one that warns, or goes another way than it should."""
        lines = self.crmbackup("backup", self.policy, f"--{kind}")
        warnings = [line for line in lines if line["type"] == "warning"]
        if warnings:
            raise SystemExit(f"{self.policy}: a {kind} warns: {warnings}")
        notices = [str(line.get("text", "")) for line in lines if line["type"] == "notice"]
        if kind == "incremental" and self._log and any(_READS_ALL in text for text in notices):
            raise SystemExit(f"{self.policy}: an incremental is not taken {self.way}: {notices}")

    def drills(self) -> list[str]:
        """Drill every snapshot; their kinds. Raises SystemExit for one that does not match."""
        snapshots = self.crmbackup("snapshots", self.policy)
        for snapshot in snapshots:
            self.crmbackup("drill", self.policy, "--snapshot", snapshot["snapshot_id"])
        return [str(snapshot["kind"]) for snapshot in snapshots]


def dump(server: MariadbServer, database: str, *options: str) -> list[str]:
    """mariadb-dump's lines; events as they are when they are off."""
    common = ("--skip-comments", "--skip-dump-date", "--default-character-set=utf8mb4")
    text = client(server, "mariadb-dump", *common, *options, database).stdout
    return re.sub(r"( ON COMPLETION (?:NOT )?PRESERVE) ENABLE\b", r"\1 DISABLE", text).split("\n")


def first_difference(wanted: list[str], found: list[str]) -> str:
    for number, (left, right) in enumerate(zip(wanted, found, strict=False)):
        if left != right:
            return f"line {number}: {left[:300]!r} is now {right[:300]!r}"
    return f"{len(wanted)} lines are now {len(found)}"


def compare(server: MariadbServer, source: str, target: str) -> str:
    """Both databases hold the same. Raises SystemExit."""
    definitions = ("--no-data", "--routines", "--events", "--triggers")
    wanted, found = dump(server, source, *definitions), dump(server, target, *definitions)
    if wanted != found:
        raise SystemExit(f"{source}: definitions differ: {first_difference(wanted, found)}")
    rows = [
        sorted(line for line in dump(server, each, *options) if line.startswith("INSERT"))
        for options in (("--no-create-info", "--skip-triggers", "--skip-extended-insert", "--hex-blob"),)
        for each in (source, target)
    ]
    if rows[0] != rows[1]:
        raise SystemExit(f"{source}: rows differ: {first_difference(*rows)}")
    sums = [checksums(server, each) for each in (source, target)]
    different = [name for name in sums[0] if sums[0][name] != sums[1].get(name)]
    if different or len(sums[0]) != len(sums[1]):
        raise SystemExit(f"{source}: CHECKSUM TABLE differs: {', '.join(different)}")
    return (
        f"definitions equal ({len(wanted)} lines of mariadb-dump), {len(rows[0])} rows equal, CHECKSUM TABLE of"
        f" {len(sums[0])} tables equal"
    )


def checksums(server: MariadbServer, database: str) -> dict[str, int]:
    with server.connect(database) as connection:
        names = [name for name, kind in generated.execute(connection, "SHOW FULL TABLES") if kind == "BASE TABLE"]
        return {name: generated.execute(connection, f"CHECKSUM TABLE {generated.quoted(name)}")[0][1] for name in names}
