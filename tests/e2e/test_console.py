"""What is printed where: nothing under cron, JSON that programs can read, and streams that are odd or gone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.product import PROGRAM, Host, content, quiet, write_policy

pytestmark = pytest.mark.e2e
COMMANDS = (
    *("init", "backup", "snapshots", "show", "restore", "drill", "check", "policy", "report", "catalog"),
    *("schedule", "run", "status", "doctor"),
)


def test_every_command_has_help_and_none_needs_a_home(host: Host) -> None:
    listing = host.run("--help").out
    for command in COMMANDS:
        assert f"\n  {command} " in listing
        assert host.run(command, "--help").out.startswith(f"Usage: crmbackup {command} ")
    bare = subprocess.run([str(PROGRAM), "--help"], env={}, capture_output=True, text=True)
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, listing, "")


def test_help_starts_fast(host: Host) -> None:
    """The bound of issue 2 is 8 times `python -c pass`; modules are counted here, since seconds depend on the machine."""
    count = "import sys, crmbackup.cli.main as m; c = m.run(['--help']); print(len(sys.modules), c, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True)
    modules, code = done.stderr.split()
    assert code == "0"
    assert int(modules) < 250
    heavy = "import sys, crmbackup.cli.main as m; m.run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True).stderr
    for name in ("boto3", "sqlalchemy", "pydantic", "jinja2", "rich", "cryptography", "apsw"):
        assert f"'{name}'" not in loaded


def test_without_output_options_success_is_silent_and_warnings_are_not(ready: Host) -> None:
    for command in ("backup", "drill", "check"):
        quiet(ready.run(command, "crm"))
    current = next(ready.state.glob("*/crm/current"))
    current.unlink()
    done = ready.run("backup", "crm")
    assert done.out == ""
    assert done.err.startswith("crmbackup: warning: a full snapshot was taken")
    assert "Full snapshot" in ready.run("backup", "crm", "--full", "--verbose").out


def test_json_is_one_object_a_line_with_one_result(ready: Host) -> None:
    for arguments, kind in (
        (("backup", "crm"), "snapshot"),
        (("show", "crm"), "snapshot"),
        (("restore", "crm", "--to", "out.db"), "restored"),
        (("drill", "crm"), "drill"),
        (("check", "crm", "--read-data"), "check"),
        (("policy", "validate", "crm"), "policy"),
        (("catalog", "rebuild", "crm"), "catalog"),
    ):
        done = ready.run(*arguments, "--json")
        assert done.err == ""
        assert done.one(kind)
        assert done.lines[-1]["type"] == kind, "the result comes last"
        assert {line["type"] for line in done.lines} <= {kind, "plan", "phase", "phase-end", "progress", "notice"}
    assert ready.run("policy", "schema").out.startswith("{")


def test_closed_and_full_streams(ready: Host, database: Path) -> None:
    def after(redirections: str, *arguments: str) -> int:
        line = f'"$0" "$@" {redirections}'
        environ = ready.environment({})
        return subprocess.run(["bash", "-c", line, str(PROGRAM), *arguments], cwd=ready.cwd, env=environ).returncode

    assert after("<&- >&- 2>&-", "backup", "crm") == 0
    assert after("<&- >&- 2>&-", "backup", "no-such-policy") == 2
    assert after(">/dev/full", "snapshots", "crm") == 9
    assert after("| head -n 0; exit ${PIPESTATUS[0]}", "snapshots", "crm") == 141
    assert after("2>&1 | head -n 0; exit ${PIPESTATUS[0]}", "backup", "no-such-policy") in (2, 141)
    assert len(ready.snapshots("crm")) == 2
    ready.run("restore", "crm", "--to", "out.db")
    assert content(ready.cwd / "out.db") == content(database)


@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C.UTF-8", "NO_COLOR": "1"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda locale: "-".join(locale.values()),
)
def test_names_that_the_terminal_cannot_show_or_should_not_obey(ready: Host, database: Path, locale) -> None:
    connection = sqlite3.connect(database)
    connection.execute('CREATE TABLE "Kunden\x1b[31m\u202eŽluťoučký日本" (a)')
    connection.commit()
    connection.close()
    for arguments in (
        ("backup", "crm", "-v"),
        ("show", "crm"),
        ("restore", "crm", "--to", "o.db"),
        ("drill", "crm", "-v"),
    ):
        process = ready.start(*arguments, env=locale)
        process.stdout.reconfigure(errors="replace")
        done = ready.ended(process)
        assert done.code == 0, done.err
        assert "\x1b" not in done.out + done.err
        assert "\u202e" not in done.out + done.err
    assert content(ready.cwd / "o.db") == content(database)


def test_chinese_names_of_tables_and_paths(tmp_path: Path) -> None:
    """Under LC_ALL=C, where Python takes nothing but ASCII for granted."""
    place = tmp_path / "客戶 管理"
    place.mkdir()
    host = Host.make(place, LC_ALL="C")
    (host.cwd / "policies").mkdir()
    database, repository, identity = place / "資料庫.db", place / "備份庫", place / "身份.txt"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute('CREATE TABLE "聯絡人" ("姓名" TEXT, "備註" TEXT)')
        connection.execute('INSERT INTO "聯絡人" VALUES (?, ?)', ("王小明", "重要 客戶"))
        connection.commit()
    asked = "[{name: 還有王小明, sql: \"SELECT count(*) FROM 聯絡人 WHERE 姓名 = '王小明'\", expect: 1}]"
    more = f'drill: {{reports: "{place}/報告", assertions: {asked}}}\nlog: {{path: "{place}/記錄.log"}}'
    inside = [f'identity: {{file: "{identity}"}}']
    policy = write_policy(host.cwd / "policies" / "crm.yaml", database, str(repository), more=more, inside=inside)
    host.run("init", "crm", "--no-passphrase", "--identity-out", identity)
    quiet(host.run("backup", "crm"))
    host.run("pin", "crm", "latest", "--why", "年底")
    assert "年底" in host.run("snapshots", "crm", "--json").out
    quiet(host.run("drill", "crm"))
    quiet(host.run("check", "crm", "--read-data"))
    shown = host.run("show", "crm", "--json").one("snapshot")
    assert [table["name"] for table in shown["tables"]] == ["聯絡人"]
    host.run("restore", "crm", "--to", "還原.db")
    assert content(host.cwd / "還原.db") == content(database)
    host.run("status", "crm")
    assert "聯絡人" in next((place / "報告").glob("*.json")).read_text("utf-8")
    assert "backup done" in (place / "記錄.log").read_text("utf-8")
    # A policy's name is part of keys in storage, so it is in ASCII; that is said, with the name that is meant.
    policy.rename(policy.with_name("客戶.yaml"))
    (host.cwd / "policies" / "客戶.yaml").write_text(
        policy.with_name("客戶.yaml").read_text().replace("crm", "客戶", 1)
    )
    refused = host.run("policy", "validate", "客戶", code=2)
    assert "name" in refused.err + refused.out
    assert "Traceback" not in refused.err


def test_a_current_directory_that_is_gone_is_an_error_with_a_way_out(ready: Host, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1" && rmdir "$1" && shift && exec "$@"'
    prefix = ["sh", "-c", script, "sh", str(gone)]
    done = ready.run("backup", "crm", "--json", prefix=prefix, code=2)
    assert done.error["hint"] == "cd / first"


def test_rights_that_are_missing_are_named(ready: Host, tmp_path: Path) -> None:
    # Root may do everything; in a user namespace of its own this process is somebody else without root's powers.
    prefix = ["unshare", "--user", "--map-user=4711"] if os.geteuid() == 0 else []
    for path, code, name in (
        (ready.cwd / "policies" / "crm.yaml", 9, "local-denied"),
        (tmp_path / "crm.db", 3, "source-unreadable"),
        (tmp_path / "repository", 4, "storage-denied"),
        (ready.config, 9, "local-denied"),
    ):
        mode = path.stat().st_mode
        path.chmod(0)
        done = ready.run("backup", "crm", "--json", prefix=prefix, code=code)
        path.chmod(mode)
        assert done.error["code"] == name
        assert str(path) in done.error["message"]
    (ready.cwd / "locked").mkdir(0o500)
    done = ready.run("restore", "crm", "--to", "locked/x.db", "--json", prefix=prefix, code=9)
    assert done.error["code"] == "local-denied"
    quiet(ready.run("backup", "crm"))


def test_an_unusual_way_to_name_a_repository(ready: Host, tmp_path: Path) -> None:
    write_policy(ready.cwd / "policies" / "rel.yaml", tmp_path / "crm.db", str(tmp_path / "repository"))
    for name in ("../../repository", f"file://{tmp_path}/repository", str(tmp_path / "repository")):
        assert len(ready.snapshots("--repository", name)) == 1
    both = ready.run("snapshots", "crm", "--repository", "../../repository", "--json", code=2)
    assert both.error["code"] == "usage"
    ready.run("snapshots", code=2)
