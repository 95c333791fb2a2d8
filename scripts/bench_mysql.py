"""`scripts/bench mysql`: crmbackup against mydumper, mariadb-dump and myloader on one MariaDB of this machine.

Needs Debian's mariadb-server, mydumper and gzip. All work with two jobs; ours also encrypts and takes the checksum of
every row. The server keeps a binary log. A user without the right to read that log shows what deduplication alone does.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.mariadb import MariadbServer, running_mariadb

PROGRAM = [str(Path(sys.executable).with_name("crmbackup"))]
SETTINGS = {
    "innodb_buffer_pool_size": "1G",
    "innodb_log_file_size": "512M",
    "innodb_doublewrite": "1",
    "table_definition_cache": "10000",
    "table_open_cache": "12000",
    "open_files_limit": "30000",
}
COLUMNS = """account_id int NOT NULL, first_name varchar(60), last_name varchar(60), email varchar(120), phone varchar(40),
    city varchar(60), note text, score decimal(10,2), created datetime, changed timestamp NULL"""
#: As CRMs have them: a counter, and a GUID as SuiteCRM's; both with two secondary keys.
TABLES = {
    "contacts": "id int AUTO_INCREMENT PRIMARY KEY",
    "people": "id char(36) CHARACTER SET ascii COLLATE ascii_general_ci PRIMARY KEY",
}
KEYS = {
    "contacts": "seq",
    "people": "insert(insert(insert(insert(md5(seq), 9, 0, '-'), 14, 0, '-'), 19, 0, '-'), 24, 0, '-')",
}
VALUES = """seq % 20000, concat('First', seq % 977), concat('Last', seq % 7919), concat(md5(seq), '@example.org'),
    concat('+49 ', seq * 7919 % 100000000), concat('City ', seq % 313), concat('Note ', md5(seq * 3), ' called on ', seq % 365,
    ', asked for an offer by mail, call back in ', seq % 29, ' days'), seq % 1000 / 7, timestamp('2020-01-01') + INTERVAL seq SECOND, timestamp('2024-01-01') + INTERVAL seq SECOND"""
RIGHTS = (
    "GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON *.* TO {user}@localhost",
    "GRANT RELOAD ON *.* TO {user}@localhost",
)
BINLOG = "GRANT BINLOG MONITOR, REPLICATION SLAVE ON *.* TO {user}@localhost"
#: (result, peer, at most this ratio)
ASKED = (
    ("full", "mydumper -t 2 -c", 1.2),
    ("full", "mariadb-dump | gzip", 0.6),
    ("incremental by deduplication", "full", 0.7),
    ("incremental by the binary log", "full", 0.15),
    ("restore", "myloader -t 2", 1.0),
    ("full of the many tables", "mariadb-dump of the many tables", None),
    ("restore of the many tables", "myloader of the many tables", None),
)
PARTS = ("full", "incremental", "restore", "many")


class MysqlBench:
    """One server. measure: runs a program, gives seconds and peak memory (`run` of scripts/bench)."""

    def __init__(
        self, server: MariadbServer, directory: Path, rows: int, runs: int, tables: int, measure: Callable[..., Any]
    ) -> None:
        self.server, self.directory, self.rows, self.runs, self.tables = server, directory, rows, runs, tables
        self._measure = measure
        self.results: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.environ = {
            **os.environ,
            "CRMBACKUP_STATE_DIR": str(directory / "state"),
            "CRMBACKUP_CONFIG_DIR": str(directory / "config"),
        }
        self.socket = dict(server.server().options)["socket"]
        self._changes = 0

    def sql(self, database: str, *statements: str) -> Any:
        """Run statements; the first value of the last one's answer."""
        with closing(self.server.connect(database)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            row = cursor.fetchone()
            return row[0] if row else None

    def prepare(self) -> None:
        """Both tables, and the users."""
        self.server.create_database("bench")
        for name, key in TABLES.items():
            order = " ORDER BY 1" if name == "people" else ""
            self.sql(
                "bench",
                f"CREATE TABLE {name} ({key}, {COLUMNS}, KEY by_account (account_id), KEY by_name (last_name, first_name))",
                f"INSERT INTO {name} SELECT {KEYS[name]}, {VALUES} FROM seq_1_to_{self.rows}{order}",
                f"ANALYZE TABLE {name}",
            )
            size = self.sql("bench", f"SELECT data_length FROM information_schema.tables WHERE table_name = '{name}'")
            print(f"{name}: {self.rows} rows, {size / 2**20:.0f} MiB", flush=True)
        for user, more in (("plain", ()), ("logged", (BINLOG,))):
            grants = (text.format(user=user) for text in (*RIGHTS, *more))
            self.sql("", f"CREATE OR REPLACE USER {user}@localhost", *grants)

    def run(self, name: str, argv: list[str], before: Callable[[], object] | None = None, *, runs: int = 0) -> None:
        """The median of several runs; `before` is called before each and not counted."""
        seconds = []
        for _ in range(runs or self.runs):
            if before:
                before()
            # What an earlier run left in memory for the disk is not this one's to wait for.
            subprocess.run(["sync"], check=True)
            seconds.append(self._measure(argv, self.environ).seconds)
        self.results[name] = statistics.median(seconds)
        print(f"  {name:<34} {self.results[name]:8.2f} s", flush=True)

    def peak(self, name: str, argv: list[str], before: Callable[[], object] | None = None) -> None:
        if before:
            before()
        self.peaks[name] = self._measure(argv, self.environ, sample=True).peak
        print(f"  {name + ', its memory':<34} {self.peaks[name] / 2**20:8.0f} MiB", flush=True)

    def policy(self, database: str, user: str) -> str:
        name = f"{database}-{user}"
        path, identity = self.directory / f"{name}.yaml", self.directory / f"{name}.identity"
        if not path.exists():
            path.write_text(
                f'version: 1\nname: {name}\nsource: {{type: mysql, url: "{self.server.url(database, user)}"}}\n'
                f"repository: {{url: {self.directory / name}, identity: {{file: {identity}}}}}\n"
                f"limits: {{jobs: 2, compression_level: 3}}\ndrill: {{reports: {self.directory / 'reports'}}}\n"
            )
            init = [*PROGRAM, "init", str(path), "--identity-out", str(identity), "--no-passphrase"]
            subprocess.run(init, env=self.environ, check=True, stdout=subprocess.DEVNULL)
        return str(path)

    def stored(self, name: str) -> int:
        """Bytes of our packs."""
        return sum(path.stat().st_size for path in (self.directory / name / "packs").rglob("*") if path.is_file())

    def change(self) -> None:
        """Change 1 % of the rows of each table, in one place of its key; another place each time."""
        self._changes += 1
        part = self._changes * 37 % 90
        low, high = (f"{int(65536 * share / 100):04x}" for share in (part, part + 1))
        self.sql(
            "bench",
            f"UPDATE contacts SET score = score + 1 WHERE id > {self.rows * part // 100}"
            f" AND id <= {self.rows * (part + 1) // 100}",
            f"UPDATE people SET score = score + 1 WHERE id >= '{low}' AND id < '{high}'",
        )

    def theirs(self, program: str, *arguments: str) -> list[str]:
        options = ["--no-defaults"] if program.startswith("mariadb") else []
        return [program, *options, f"--socket={self.socket}", "--user=root", *arguments]

    def full(self) -> None:
        """Ours, mydumper's and mariadb-dump's."""
        ours = [*PROGRAM, "backup", self.policy("bench", "logged"), "--full"]
        self.sql("bench", "SELECT count(note) FROM contacts", "SELECT count(note) FROM people")
        self.peak("full", ours)
        self.bytes["full"] = self.stored("bench-logged")
        self.run("full", ours)
        folder = self.directory / "mydumper"
        mydumper = self.theirs("mydumper", "-t", "2", "-c", "-B", "bench", "-o", str(folder))
        self.run("mydumper -t 2 -c", mydumper, lambda: shutil.rmtree(folder, ignore_errors=True))
        dump = " ".join(self.theirs("mariadb-dump", "--single-transaction", "bench"))
        script = f"set -o pipefail; {dump} | gzip > {self.directory / 'dump.gz'}"
        self.run("mariadb-dump | gzip", ["bash", "-c", script], runs=1)

    def incremental(self) -> None:
        """By deduplication alone, and with the binary log."""
        for name, user in (("by deduplication", "plain"), ("by the binary log", "logged")):
            argv = [*PROGRAM, "backup", self.policy("bench", user)]
            before = self.stored(f"bench-{user}")
            self._measure([*argv, "--full"], self.environ)
            full = self.stored(f"bench-{user}") - before
            self.run(f"incremental {name}", [*argv, "--incremental"], self.change)
            before = self.stored(f"bench-{user}")
            self.peak(f"incremental {name}", [*argv, "--incremental"], self.change)
            self.bytes[f"incremental {name}"] = self.stored(f"bench-{user}") - before
            self.bytes.setdefault("full", full)

    def restore(self) -> None:
        """Ours and myloader's, both into a database that is not there."""
        argv = [*PROGRAM, "backup", self.policy("bench", "logged"), "--full"]
        self._measure(argv, self.environ)
        target = [*PROGRAM, "restore", self.policy("bench", "logged"), "--to", self.server.url("ours"), "--create"]
        target += ["--jobs", "2", "--roles", "ignore"]

        def fresh() -> None:
            self.server.drop_database("ours")
            self.server.drop_database("theirs")

        self.run("restore", target, fresh)
        self.peak("restore", target, fresh)
        folder = self.directory / "mydumper"
        shutil.rmtree(folder, ignore_errors=True)
        dump = self.theirs("mydumper", "-t", "2", "-c", "-B", "bench", "-o", str(folder))
        subprocess.run(dump, check=True, capture_output=True)
        loader = self.theirs("myloader", "-t", "2", "-d", str(folder), "-s", "bench", "-B", "theirs")
        self.run("myloader -t 2", loader, fresh)
        fresh()

    def many(self) -> None:
        """A database of thousands of small tables."""
        if not self.tables:
            return
        self.server.create_database("many")
        for first in range(0, self.tables, 500):
            numbers = range(first, min(first + 500, self.tables))
            self.sql("many", *(f"CREATE TABLE t{number} (id int PRIMARY KEY, name text)" for number in numbers),
                     *(f"INSERT INTO t{number} SELECT seq, md5(seq) FROM seq_1_to_10" for number in numbers))  # fmt: skip
        for name, user in (("dedup", "plain"), ("binlog", "logged")):
            argv = [*PROGRAM, "backup", self.policy("many", user)]
            # The first time, the server opens every table.
            self._measure([*argv, "--full"], self.environ)
            if name == "binlog":
                self.run("full of the many tables", [*argv, "--full"], runs=1)
            self.sql(
                "many",
                *(f"UPDATE t{number} SET name = 'changed' WHERE id = 1" for number in range(0, self.tables, 100)),
            )
            self.run(f"incremental of the many tables, {name}", [*argv, "--incremental"], runs=1)
        target = [*PROGRAM, "restore", self.policy("many", "logged"), "--to", self.server.url("ours"), "--create"]
        self.run("restore of the many tables", [*target, "--jobs", "2", "--roles", "ignore"], runs=1)
        self.server.drop_database("ours")
        out, folder = self.directory / "many.sql", self.directory / "many"
        dump = self.theirs("mariadb-dump", "--single-transaction", f"--result-file={out}", "many")
        self.run("mariadb-dump of the many tables", dump, runs=1)
        self.run("mydumper of the many tables", self.theirs("mydumper", "-t", "2", "-c", "-B", "many", "-o", str(folder)),
                 runs=1)  # fmt: skip
        loader = self.theirs("myloader", "-t", "2", "-d", str(folder), "-s", "many", "-B", "theirs")
        self.run("myloader of the many tables", loader, runs=1)
        for name, seconds in self.results.items():
            if "of the many tables" in name:
                print(f"  {name}: {seconds / self.tables * 1000:.2f} ms a table ({self.tables})")
        for database in ("many", "theirs"):
            self.server.drop_database(database)

    def report(self) -> None:
        """The ratios, each beside what was asked for."""
        print("ratios:")
        for name, over, bound in ASKED:
            if name in self.results and over in self.results:
                asked = f"asked: at most {bound}" if bound else ""
                print(f"  {name + ' / ' + over:<60} {self.results[name] / self.results[over]:6.2f}  {asked}")
        for name in self.bytes:
            if name != "full":
                share = self.bytes[name] / self.bytes["full"]
                print(f"  {'new bytes: ' + name + ' / full':<60} {share:6.3f}  asked: at most 0.05")
        print("peak memory of all our processes together, shared pages once (asked: under 400 MiB):")
        for name, peak in self.peaks.items():
            print(f"  {name:<34} {peak / 2**20:8.0f} MiB")


def run_mysql(
    directory: Path, rows: int, runs: int, tables: int, measure: Callable[..., Any], out: Path | None, parts: list[str]
) -> None:
    """All of it or some parts, in a directory that the caller removes. out: a file for the figures."""
    needed = ("mariadbd", "mariadb-dump", "mydumper", "myloader", "gzip")
    missing = [name for name in needed if not shutil.which(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; try apt-get install mariadb-server mydumper")
    began = time.monotonic()
    with running_mariadb(settings=SETTINGS) as server:
        bench = MysqlBench(server, directory, rows, runs, tables, measure)
        bench.prepare()
        for part in parts or PARTS:
            getattr(bench, part)()
        bench.report()
    print(f"all of it took {time.monotonic() - began:.0f} s")
    if out:
        out.write_text(
            json.dumps({"seconds": bench.results, "peak_bytes": bench.peaks, "new_bytes": bench.bytes}, indent=2) + "\n"
        )
