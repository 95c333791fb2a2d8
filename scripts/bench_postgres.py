"""`scripts/bench postgres`: crmbackup against pg_dump, restic and pgBackRest on one cluster of its own.

Needs root (PostgreSQL does not run as root, so the cluster is user postgres's), Debian's PostgreSQL 15, zstd, openssl,
restic and pgbackrest, and about eight times the database's size of free disk. Every peer writes to the same disk.
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
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

PROGRAM = [str(Path(sys.executable).with_name("crmbackup"))]
BINARIES = Path("/usr/lib/postgresql/15/bin")
SETTINGS = """
listen_addresses = ''
unix_socket_directories = '{socket}'
shared_buffers = 1GB
max_wal_size = 8GB
maintenance_work_mem = 256MB
checkpoint_timeout = 30min
max_locks_per_transaction = 256
archive_mode = on
archive_command = '{archive}'
"""
#: What people write: digests and random letters would compress, and cost, like no CRM's text does.
WORDS = (
    "the a client call offer price meeting please send invoice order delivery contract renew next week month"
    " about answer wants asked sales manager office product service support question problem solved agreed later"
    " maybe budget year team demo trial license upgrade training visit letter mail phone number address changed"
    " new old customer partner with for and but not yet under before after today every morning"
)
#: About 230 bytes a row of heap, as a CRM's contacts have.
TABLES = """
CREATE FUNCTION word(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT ('{{{words}}}'::text[])[1 + (hashint8(n) & 63)] $$;
CREATE FUNCTION words(n bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
    $$ SELECT word(n) || ' ' || word(n * 3) || ' ' || word(n * 7) || ' ' || word(n * 11) || ' ' || word(n * 13) $$;
CREATE TABLE accounts (id bigint PRIMARY KEY, name text NOT NULL, city text, revenue numeric(12,2), created timestamptz);
CREATE TABLE contacts (id bigint PRIMARY KEY, account_id bigint NOT NULL, first_name text NOT NULL, last_name text NOT NULL,
    email text NOT NULL, phone text, city text, note text, score int NOT NULL, created timestamptz, changed timestamptz);
CREATE TABLE activities (id bigint PRIMARY KEY, contact_id bigint NOT NULL, kind text NOT NULL, happened timestamptz NOT NULL,
    subject text);
INSERT INTO accounts SELECT g, initcap(word(g) || ' ' || word(g * 3)) || ' ' || g, 'City ' || (hashint8(g) & 1023), (g * 7919 % 100000) / 7.0,
    timestamptz '2019-01-01Z' + g * interval '1 minute' FROM generate_series(1::bigint, {rows} / 10) g;
INSERT INTO contacts SELECT g, g * 31 % ({rows} / 10) + 1, first, last, lower(first) || '.' || lower(last) || g || '@example'
    || (hashint8(g + 3) & 511) || '.org', '+49 30 ' || g * 7919 % 100000000, 'City ' || (hashint8(g + 4) & 1023),
    words(g * 17 + 1) || ' ' || words(g * 19 + 2) || ' ' || words(g * 23 + 3), g % 100, timestamptz '2019-01-01Z' + g * interval '37 seconds',
    timestamptz '2020-01-01Z' + g * interval '41 seconds'
    FROM generate_series(1::bigint, {rows}) g,
    LATERAL (SELECT (ARRAY['Anna','Jan','Zoë','José','Mei','Fatima','Ole','Ida'])[1 + (hashint8(g + 1) & 7)] AS first,
    initcap(word(g * 3)) || word(g * 5) AS last) n;
INSERT INTO activities SELECT g, g * 17 % {rows} + 1, (ARRAY['call','mail','visit'])[g % 3 + 1],
    timestamptz '2020-01-01Z' + g * interval '29 seconds', words(g + 7) FROM generate_series(1::bigint, {rows} / 3) g;
CREATE INDEX contacts_email ON contacts (email);
CREATE INDEX contacts_account ON contacts (account_id);
ALTER TABLE contacts ADD FOREIGN KEY (account_id) REFERENCES accounts;
VACUUM (ANALYZE, FREEZE);
CHECKPOINT;
"""
#: (result, peer, at most this ratio, only its sign: "faster than")
ASKED = (
    ("full", "pg_dump -Fd -j2", 0.4),
    ("full", "pg_dump | zstd | openssl", 1.1),
    ("full", "pg_dump | restic", 1.0),
    ("full", "pgbackrest full", None),
    ("incremental", "full", 0.15),
    # What the bounds on a full and on its incremental say together, however quick a full is.
    ("incremental", "pg_dump -Fd -j2", 0.4 * 0.15),
    ("incremental", "pgbackrest incr", 1.0),
    ("restore", "pg_restore -j2", 0.9),
    ("full of the many tables", "pg_dump of the many tables", None),
)


def server_user(argv: list[str], **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a program as user postgres; it fails the bench if it fails."""
    done = subprocess.run(["runuser", "-u", "postgres", "--", *argv], capture_output=True, check=False, cwd="/", **more)
    if done.returncode:
        sys.exit(f"{' '.join(argv)} failed:\n{done.stdout.decode()}{done.stderr.decode()}")
    return done


class PostgresBench:
    """One cluster in one directory. measure: runs a program, gives seconds and peak memory (`run` of scripts/bench)."""

    def __init__(self, directory: Path, rows: int, runs: int, tables: int, measure: Callable[..., Any]) -> None:
        self.directory, self.rows, self.runs, self.tables, self._measure = directory, rows, runs, tables, measure
        self.cluster, self.socket = directory / "cluster", directory / "socket"
        self.results: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self.environ = {
            **os.environ,
            "CRMBACKUP_STATE_DIR": str(directory / "state"),
            "CRMBACKUP_CONFIG_DIR": str(directory / "config"),
            "RESTIC_PASSWORD": "bench",
            "RESTIC_CACHE_DIR": str(directory / "restic-cache"),
        }
        self._changes = 0
        self.size = 0

    def start(self) -> None:
        """The cluster with its database, and pgBackRest's repository."""
        directory = self.directory
        directory.chmod(0o711)
        for name in ("socket", "pgbackrest", "pgbackrest-log"):
            (directory / name).mkdir()
            shutil.chown(directory / name, "postgres", "postgres")
        self.cluster.mkdir(mode=0o700)
        shutil.chown(self.cluster, "postgres", "postgres")
        self.backrest_settings = directory / "pgbackrest.conf"
        self.backrest_settings.write_text(
            f"[global]\nrepo1-path={directory}/pgbackrest\nlog-path={directory}/pgbackrest-log\nlock-path={directory}"
            f"/pgbackrest-log\ncompress-type=zst\nprocess-max=2\nstart-fast=y\nrepo1-cipher-type=aes-256-cbc\n"
            f"repo1-cipher-pass=bench\nrepo1-retention-full=100\nlog-level-console=error\n[bench]\n"
            f"pg1-path={self.cluster}\npg1-socket-path={self.socket}\n"
        )
        server_user([str(BINARIES / "initdb"), "-D", str(self.cluster), "-A", "trust", "--locale=C.UTF-8"])
        archive = f"pgbackrest --config={self.backrest_settings} --stanza=bench archive-push %p"
        with (self.cluster / "postgresql.conf").open("a") as stream:
            stream.write(SETTINGS.format(socket=self.socket, archive=archive))
        self._control("start", "-l", str(self.socket / "log"))
        self._backrest("stanza-create")
        with self.connect("postgres") as connection:
            connection.execute("CREATE DATABASE bench")
        with self.connect("bench") as connection:
            for statement in TABLES.format(rows=self.rows, words=WORDS.replace(" ", ",")).split(";\n"):
                connection.execute(statement.encode())
            row = connection.execute("SELECT pg_table_size('contacts'), pg_database_size('bench')").fetchone()
            assert row
            self.size = row[1]
            print(f"contacts: {self.rows} rows, {row[0] / 2**20:.0f} MiB heap; database: {row[1] / 2**20:.0f} MiB")

    def stop(self) -> None:
        if (self.cluster / "postmaster.pid").exists():
            self._control("stop", "-m", "immediate")

    def _control(self, *arguments: str) -> None:
        argv = ["runuser", "-u", "postgres", "--", str(BINARIES / "pg_ctl"), "-w", "-D", str(self.cluster), *arguments]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url(database), autocommit=True)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={quote(str(self.socket), safe='')}"

    def _backrest(self, command: str, *options: str) -> None:
        server_user(["pgbackrest", f"--config={self.backrest_settings}", "--stanza=bench", *options, command])

    def median(self, name: str, argv: list[str], before: Callable[[], None] | None = None) -> None:
        """Seconds of several runs, the median; `before` is called before each and not counted."""
        seconds = []
        for _ in range(self.runs):
            if before:
                before()
            # What an earlier run left in memory for the disk is not this one's to wait for.
            subprocess.run(["sync"], check=True)
            seconds.append(self._measure(argv, self.environ).seconds)
        self.results[name] = statistics.median(seconds)
        print(f"  {name:<34} {self.results[name]:8.2f} s", flush=True)

    def peak(self, name: str, argv: list[str], before: Callable[[], None] | None = None) -> None:
        if before:
            before()
        self.peaks[name] = self._measure(argv, self.environ, sample=True).peak

    def policy(self, database: str) -> Path:
        path, directory = self.directory / f"{database}.yaml", self.directory
        identity = directory / f"{database}.identity"
        path.write_text(
            f'version: 1\nname: {database}\nsource: {{type: postgres, url: "{self.url(database)}"}}\n'
            f"repository: {{url: {directory / database}, identity: {{file: {identity}}}}}\n"
            f"limits: {{jobs: 2, compression_level: 3}}\ndrill: {{reports: {directory / 'reports'}}}\n"
        )
        init = [*PROGRAM, "init", str(path), "--identity-out", str(identity), "--no-passphrase"]
        subprocess.run(init, env=self.environ, check=True, stdout=subprocess.DEVNULL)
        return path

    def change(self) -> None:
        """Change 1 % of the contacts in one place, another one each time, and append 1 % to them."""
        self._changes += 1
        share = self.rows // 100
        start = self.rows * (self._changes * 37 % 90) // 100
        top = self.rows + (self._changes - 1) * share
        with self.connect("bench") as connection:
            connection.execute(
                "UPDATE contacts SET score = score + 1, changed = now() WHERE id > %s AND id <= %s",
                (start, start + share),
            )
            connection.execute(
                "INSERT INTO contacts SELECT id + %s - %s, account_id, first_name, last_name, %s::text"
                " || email, phone, city, note, score, created, now() FROM contacts WHERE id > %s AND id <= %s",
                (top, start, self._changes, start, start + share),
            )
            connection.execute("CHECKPOINT")
        self._archived()

    def _archived(self) -> None:
        """Wait until the log is archived: what pgBackRest does with it is no part of what is measured next."""
        with self.connect("postgres") as connection:
            row = connection.execute("SELECT pg_walfile_name(pg_switch_wal())").fetchone()
            assert row
            while True:
                done = connection.execute("SELECT last_archived_wal FROM pg_stat_archiver").fetchone()
                if done and done[0] and done[0] >= row[0]:
                    return
                time.sleep(0.1)

    def _archive_nothing(self) -> None:
        """The log is archived for pgBackRest's incrementals only. Done for a restore's log, it takes a third of all
        processor time, and chance decides how much of it falls into whose run."""
        with self.connect("postgres") as connection:
            connection.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
            connection.execute("SELECT pg_reload_conf()")
        self._archived()

    def fresh(self, database: str) -> None:
        with self.connect("postgres") as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {database}".encode())

    def stored(self) -> int:
        """Bytes of our packs of the database."""
        return sum(path.stat().st_size for path in (self.directory / "bench" / "packs").rglob("*") if path.is_file())

    def run_all(self) -> None:
        """Everything; peers' figures in the same run. Fulls first, then the peers, then incrementals, then restores."""
        directory, url = self.directory, self.url("bench")
        dump, restore = str(BINARIES / "pg_dump"), str(BINARIES / "pg_restore")
        policy = str(self.policy("bench"))
        print(f"database: {self.size / 2**20:.0f} MiB, median of {self.runs} runs each")
        with self.connect("bench") as connection:
            connection.execute("SELECT count(*) FROM contacts")  # all begin with what shared_buffers can hold
        full, incremental = [*PROGRAM, "backup", policy, "--full"], [*PROGRAM, "backup", policy, "--incremental"]
        before = self.stored()
        self.peak("full", full)
        self.bytes["full"] = self.stored() - before
        self.median("full", full)
        folder = directory / "folder"
        self.median(
            "pg_dump -Fd -j2",
            [dump, "-Fd", "-j2", "-f", str(folder), "-d", url],
            lambda: shutil.rmtree(folder, ignore_errors=True),
        )
        script = f"""
            set -o pipefail; export BENCH=bench
            '{dump}' -Fc -Z0 -d '{url}' | zstd -q -3 -T2 | openssl enc -aes-256-ctr -pass env:BENCH -pbkdf2 > '{directory}/pipe'
            sync '{directory}/pipe'"""
        self.median("pg_dump | zstd | openssl", ["bash", "-c", script])
        restic = f"restic -q -r '{directory}/restic'"

        def forget() -> None:
            shutil.rmtree(directory / "restic", ignore_errors=True)
            shutil.rmtree(directory / "restic-cache", ignore_errors=True)
            subprocess.run(["bash", "-c", f"{restic} init"], env=self.environ, check=True, stdout=subprocess.DEVNULL)

        script = f"set -o pipefail; '{dump}' -Fc -Z0 -d '{url}' | {restic} backup --stdin"
        self.median("pg_dump | restic", ["bash", "-c", script], forget)
        backrest = [
            "runuser",
            "-u",
            "postgres",
            "--",
            "pgbackrest",
            f"--config={self.backrest_settings}",
            "--stanza=bench",
        ]
        self.median("pgbackrest full", [*backrest, "--type=full", "backup"])
        self.run_incrementals(incremental, [*backrest, "--type=incr", "backup"])
        self._archive_nothing()
        target = [*PROGRAM, "restore", policy, "--to", self.url("ours"), "--create", "--jobs", "2"]
        self.peak("restore", target, lambda: self.fresh("ours"))
        self.median("restore", target, lambda: self.fresh("ours"))
        shutil.rmtree(folder)
        subprocess.run([dump, "-Fd", "-j2", "-f", str(folder), "-d", url], check=True)

        def empty() -> None:
            self.fresh("theirs")
            with self.connect("postgres") as connection:
                connection.execute("CREATE DATABASE theirs")

        self.median("pg_restore -j2", [restore, "-j2", "-d", self.url("theirs"), str(folder)], empty)
        self.fresh("ours")
        self.fresh("theirs")
        drill = [*PROGRAM, "drill", policy]
        self.peak("drill (with its server)", drill)
        self.median("drill", drill)
        self.run_many()
        self.report()

    def run_incrementals(self, ours: list[str], theirs: list[str]) -> None:
        """Both see the same change before each run."""
        seconds: dict[str, list[float]] = {"incremental": [], "pgbackrest incr": []}
        # Both begin from a snapshot of now.
        self._measure(ours, self.environ)
        self._measure(theirs, self.environ)
        for _ in range(self.runs):
            self.change()
            subprocess.run(["sync"], check=True)  # as in `median`
            before = self.stored()
            seconds["incremental"].append(self._measure(ours, self.environ).seconds)
            self.bytes["incremental"] = self.stored() - before
            seconds["pgbackrest incr"].append(self._measure(theirs, self.environ).seconds)
        for name, values in seconds.items():
            self.results[name] = statistics.median(values)
            print(f"  {name:<34} {self.results[name]:8.2f} s", flush=True)
        self.peak("incremental", ours, self.change)

    def run_many(self) -> None:
        """A database of thousands of small tables."""
        if not self.tables:
            return
        with self.connect("postgres") as connection:
            connection.execute("CREATE DATABASE many")
        with self.connect("many") as connection:
            for first in range(0, self.tables, 500):
                connection.execute(
                    "; ".join(
                        f"CREATE TABLE t{number} (id int PRIMARY KEY, name text);"
                        f" INSERT INTO t{number} SELECT g, md5(g::text) FROM generate_series(1, 10) g"
                        for number in range(first, min(first + 500, self.tables))
                    ).encode()
                )
            connection.execute("VACUUM ANALYZE")
        policy, out = str(self.policy("many")), str(self.directory / "many.dump")
        runs, self.runs = self.runs, 1
        self.median("full of the many tables", [*PROGRAM, "backup", policy, "--full"])
        self.median("incremental of the many tables", [*PROGRAM, "backup", policy, "--incremental"])
        argv = [str(BINARIES / "pg_dump"), "-Fc", "-f", out, "-d", self.url("many")]
        self.median("pg_dump of the many tables", argv)
        self.runs = runs
        for name in ("full of the many tables", "incremental of the many tables", "pg_dump of the many tables"):
            print(f"  {name}: {self.results[name] / self.tables * 1000:.2f} ms a table ({self.tables})")

    def report(self) -> None:
        """The ratios, each beside what was asked for."""
        print("ratios:")
        for name, over, bound in ASKED:
            if name in self.results and over in self.results:
                asked = f"asked: at most {bound:.3g}" if bound else ""
                print(f"  {name + ' / ' + over:<60} {self.results[name] / self.results[over]:6.2f}  {asked}")
        share = self.bytes["incremental"] / self.bytes["full"]
        print(f"  {'new bytes of an incremental / of a full':<60} {share:6.2f}  asked: at most 0.05")
        print("peak memory of all our processes together, shared pages once (asked: under 400 MiB):")
        for name, peak in self.peaks.items():
            print(f"  {name:<34} {peak / 2**20:8.0f} MiB")


def run_postgres(
    directory: Path, rows: int, runs: int, tables: int, measure: Callable[..., Any], out: Path | None
) -> None:
    """All of it, in a directory that the caller removes. out: a file for the figures."""
    missing = [name for name in ("zstd", "openssl", "restic", "pgbackrest", "runuser") if not shutil.which(name)]
    missing += [] if (BINARIES / "postgres").exists() else ["postgresql-15"]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; try apt-get install {' '.join(missing)}")
    if os.geteuid():
        sys.exit("scripts/bench postgres runs as root: its cluster belongs to user postgres")
    bench = PostgresBench(directory, rows, runs, tables, measure)
    began = time.monotonic()
    try:
        bench.start()
        bench.run_all()
    finally:
        bench.stop()
    print(f"all of it took {time.monotonic() - began:.0f} s")
    if out:
        figures = {"size": bench.size, "seconds": bench.results, "peak_bytes": bench.peaks, "new_bytes": bench.bytes}
        out.write_text(json.dumps(figures, indent=2) + "\n")
