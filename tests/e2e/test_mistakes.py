"""Bad input, as far as it is visible at the command line: each a clear error, an exit code, and nothing lost."""

from __future__ import annotations

import json
import re
import socket
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.product import Host, commit_in_future, content, crm, quiet, write_policy

pytestmark = pytest.mark.e2e

TEN_ERRORS = """\
version: 2
nane: crm
source:
  type: sqlite
  path: crm.db
  max_shrink: 50
repository:
  url: ftp://somewhere
  retries: 0
schedule:
  full: "99 2 * * 0"
  timezone: Mars/Olympus
retention: {daly: 7}
objectives: {rpo: 10}
limits: {jobs: 100}
"""


def test_a_policy_with_ten_errors_shows_all_ten_with_their_lines(host: Host) -> None:
    (host.cwd / "bad.yaml").write_text(TEN_ERRORS)
    done = host.run("policy", "validate", "bad.yaml", code=2)
    lines = re.findall(r"bad\.yaml:(\d+): (\S+): (.+)", done.out)
    places = {(int(number), path) for number, path, _ in lines}
    assert len(places) >= 10
    assert places >= {
        (1, "version"),
        (2, "nane"),
        (5, "source.path"),
        (6, "source.max_shrink"),
        (8, "repository.url"),
        (9, "repository.retries"),
        (11, "schedule.full"),
        (12, "schedule.timezone"),
        (13, "retention.daly"),
        (14, "objectives.rpo"),
        (15, "limits.jobs"),
    }
    assert '(did you mean "name"?)' in done.out
    assert '(did you mean "daily"?)' in done.out

    backup = host.run("backup", "bad.yaml", "--json", code=2)
    assert backup.error["code"] == "policy-invalid"
    assert all(f"bad.yaml:{number}: {path}" in backup.error["message"] for number, path in places)
    told = host.run("policy", "validate", "bad.yaml", "--json", code=2)
    assert {(each["line"], each["path"]) for each in told.one("policy")["problems"]} == places


def test_names_that_are_close_are_suggested(ready: Host) -> None:
    assert "did you mean crm?" in ready.run("backup", "crmm", code=2).err
    assert "Did you mean backup?" in ready.run("bakcup", "crm", code=2).err
    assert "--snapshot" in ready.run("restore", "crm", "--snapshto", "latest", code=2).err


def test_errors_of_the_command_line_are_json_too(host: Host) -> None:
    for arguments in (
        ("backup",),
        ("nosuch",),
        ("restore", "x", "--to", "y", "--at", "noon"),
        ("backup", "--nosuch", "x"),
    ):
        error = host.run(*arguments, "--json", code=2).error
        assert error["code"] == "usage"
        assert error["message"]


def test_a_source_that_lost_its_rows_is_refused_and_can_be_accepted(ready: Host, database: Path) -> None:
    before = content(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            if table in ("activities", "audit_trail", "contact_tags", "emails", "import_lines", "leads", "notes"):
                connection.execute(f'DELETE FROM "{table}"')
    refused = ready.run("backup", "crm", "--json", code=3)
    assert refused.error["code"] == "source-shrank"
    assert "--allow-shrink" in refused.error["hint"]
    assert len(ready.snapshots("crm")) == 1
    ready.run("restore", "crm", "--to", "before.db")
    assert content(ready.cwd / "before.db") == before

    quiet(ready.run("backup", "crm", "--allow-shrink"))
    ready.run("restore", "crm", "--to", "after.db")
    assert content(ready.cwd / "after.db") == content(database)
    quiet(ready.run("backup", "crm"))


def test_a_source_that_shrank_to_another_file_is_refused(ready: Host, database: Path) -> None:
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE contacts (id INTEGER PRIMARY KEY)")
        connection.commit()
    refused = ready.run("backup", "crm", "--json", code=3)
    assert refused.error["code"] == "source-shrank"
    assert "bytes" in refused.error["message"]
    assert len(ready.snapshots("crm")) == 1


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda path: path.unlink(), "source-missing"),
        (lambda path: path.write_bytes(b""), "source-empty"),
        (lambda path: path.write_bytes(b"Not a database at all." * 1000), "source-not-a-database"),
    ],
)
def test_an_absent_source_is_never_an_empty_success(ready: Host, database: Path, damage, code: str) -> None:
    damage(database)
    refused = ready.run("backup", "crm", "--json", code=3)
    assert refused.error["code"] == code
    assert refused.error["hint"]
    assert len(ready.snapshots("crm")) == 1


def test_a_target_that_exists_is_kept_unless_told_otherwise(ready: Host, database: Path) -> None:
    target = ready.cwd / "out.db"
    target.write_text("precious")
    refused = ready.run("restore", "crm", "--to", target, "--json", code=9)
    assert refused.error["code"] == "target-exists"
    assert target.read_text() == "precious"
    (ready.cwd / "out.db-wal").write_text("stale")
    ready.run("restore", "crm", "--to", target, "--overwrite")
    assert not (ready.cwd / "out.db-wal").exists()
    assert content(target) == content(database)
    assert ready.run("restore", "crm", "--to", ".", "--overwrite", "--json", code=9).error["code"] == "target-exists"
    nowhere = ready.run("restore", "crm", "--to", "no/such/out.db", "--json", code=9)
    assert "does not exist" in nowhere.error["message"]


def test_restoring_over_the_source_itself_warns(ready: Host, database: Path) -> None:
    done = ready.run("restore", "crm", "--to", database, "--overwrite", "--json")
    assert done.one("warning")["code"] == "target-is-source"


def test_nothing_is_restored_into_the_repository(ready: Host, tmp_path: Path) -> None:
    """With --overwrite that could be the very pack that is read."""
    repository = tmp_path / "repository"
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    (pack,) = repository.glob("packs/*/*")
    (ready.cwd / "link").symlink_to(repository)
    for target in (pack, repository / "packs" / "new.db", "link/repository.json"):
        done = ready.run("restore", "crm", "--to", target, "--overwrite", "--json", code=2)
        assert "lies within the repository" in done.error["message"]
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before


def test_a_snapshot_from_a_clock_that_was_wrong_is_warned_of_and_hides_no_newer_one(
    ready: Host, database: Path, tmp_path: Path
) -> None:
    header = commit_in_future(ready, tmp_path)
    done = ready.run("restore", "crm", "--to", "out.db", "--plan")
    assert header.snapshot_id in done.out
    assert "ffffffffffffffff is dated in the future" in done.err
    done = ready.run("restore", "crm", "--to", "out.db", "--plan", "--snapshot", "f" * 16)
    assert "400 d in the future" in done.out or "399 d 23 h in the future" in done.out
    assert "dated in the future" in done.err
    assert "--snapshot ID" in done.err
    assert ready.run("restore", "crm", "--to", "out.db", "--snapshot", header.snapshot_id, "--plan").err == ""

    # What the source lost is told by the snapshots before it, also when the loss was accepted.
    database.unlink()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE contacts (id INTEGER PRIMARY KEY)")
        connection.commit()
    assert ready.run("backup", "crm", "--json", code=3).error["code"] == "source-shrank"
    ready.run("backup", "crm", "--allow-shrink")
    ready.run("backup", "crm")


def test_snapshots_that_are_not_there(ready: Host) -> None:
    assert ready.run("restore", "crm", "--to", "x", "--snapshot", "feed", "--json", code=5).error["code"] == (
        "snapshot-not-found"
    )
    assert "is neither" in ready.run("show", "crm", "not an id", code=2).err
    early = ready.run("restore", "crm", "--to", "x", "--at", "2001-01-01", "--json", code=5).error
    assert "the oldest one is" in early["hint"]
    other = ready.run("restore", "crm", "--to", "x", "--of", "sales", "--json", code=5).error
    assert "1 snapshot of crm" in other["hint"]


def test_keys_that_do_not_fit(ready: Host, tmp_path: Path) -> None:
    (tmp_path / "identity.txt").rename(tmp_path / "moved.txt")
    unset = ready.run("restore", "crm", "--to", "x", "--json", code=6).error
    assert unset["code"] == "secret-unavailable"
    typo = (tmp_path / "moved.txt").read_text().splitlines()[-1]
    typo = typo[:7] + ("B" if typo[7] == "A" else "A") + typo[8:]
    (tmp_path / "typo.txt").write_text(typo)
    wrong = ready.run("restore", "crm", "--to", "x", "--identity-file", tmp_path / "typo.txt", "--json", code=6).error
    assert wrong["code"] == "identity-invalid"
    assert "checksum" in wrong["message"]
    assert typo not in json.dumps(wrong)

    other = Host.make(tmp_path / "other")
    (tmp_path / "other.db").write_bytes((tmp_path / "crm.db").read_bytes())
    policy = write_policy(other.cwd / "p.yaml", tmp_path / "other.db", str(tmp_path / "other-repository"))
    other.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "other.txt")
    foreign = ready.run("restore", "crm", "--to", "x", "--identity-file", tmp_path / "other.txt", "--json", code=6)
    assert foreign.error["code"] == "not-a-recipient"
    assert not (ready.cwd / "x").exists()


def test_a_repository_of_a_newer_format_is_left_alone(ready: Host, tmp_path: Path) -> None:
    path = tmp_path / "repository" / "repository.json"
    document = json.loads(path.read_bytes())
    document["format"] += 1
    path.chmod(0o600)
    path.write_text(json.dumps(document))
    before = sorted(each.name for each in path.parent.rglob("*"))
    for command in (
        ("backup", "crm"),
        ("snapshots", "crm"),
        ("restore", "crm", "--to", "x"),
        ("init", "crm", "--join"),
    ):
        error = ready.run(*command, "--json", code=5).error
        assert error["code"] == "repository-too-new"
        assert "newer" in error["hint"]
    assert sorted(each.name for each in path.parent.rglob("*")) == before


def test_init_makes_no_second_repository_and_loses_no_identity(ready: Host, tmp_path: Path) -> None:
    again = ready.run("init", "crm", "--no-passphrase", "--identity-out", "second.txt", "--json", code=5)
    assert again.error["code"] == "repository-exists"
    assert "--join" in again.error["hint"]
    assert not (ready.cwd / "second.txt").exists()

    policy = write_policy(ready.cwd / "new.yaml", tmp_path / "crm.db", str(tmp_path / "new-repository"))
    lost = ready.run("init", policy, "--no-passphrase", "--json", code=2)
    assert "would be lost" in lost.error["message"]
    ready.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt", code=9)
    ready.run("init", policy, "--no-passphrase", "--sheet", "no/such/sheet.txt", code=9)
    assert not (tmp_path / "new-repository").exists()


@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_snapshot_of_another_product_is_refused_before_a_server_is_asked(
    ready: Host, tmp_path: Path, scheme: str
) -> None:
    (snapshot,) = ready.snapshots("crm")
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = f"{scheme}://admin@127.0.0.1:{server.getsockname()[1]}/crm"
        place = ("--repository", tmp_path / "repository", "--identity-file", tmp_path / "identity.txt")
        for which in (("crm",), ("crm", "--snapshot", snapshot["snapshot_id"][:6]), place):
            refused = ready.run("restore", *which, "--to", to, "--json", code=2).error
            assert "of engine sqlite" in refused["message"]
            assert "file" in refused["hint"]
        for start in (scheme, f"{scheme}x"):
            secret = f"{start}://admin:hush-hush@127.0.0.1/crm"
            refused = ready.start("restore", "crm", "--to", secret)
            told = ready.ended(refused)
            assert (told.code, "hush-hush" in told.out + told.err) == (2, False)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_damage_is_found_and_named(ready: Host, tmp_path: Path) -> None:
    (pack,) = (path for path in (tmp_path / "repository" / "packs").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    (snapshot,) = ready.snapshots("crm")
    quiet(ready.run("check", "crm"))
    found = ready.run("check", "crm", "--read-data", code=5)
    assert pack.name[:16] in found.out
    assert snapshot["snapshot_id"] in found.out
    # Every check looks at it again, also one that reads nothing else; the same is known to whoever watches.
    assert pack.name[:16] in ready.run("check", "crm", code=5).out
    status = ready.run("status", "--json", code=14).one("status")
    assert (
        *(each["code"] for each in status["concerns"]),
        status["check"]["passed"],
        status["damage"]["passed"],
    ) == ("check-failed", False, False)
    assert "found damage: pack" in ready.run("monitor", "crm", code=2).out
    for command in (("restore", "crm", "--to", "x"), ("drill", "crm")):
        assert ready.run(*command, "--json", code=5).error["code"] == "object-damaged"
    assert not (ready.cwd / "x").exists()


def test_damage_that_a_check_of_the_repository_found_ends_with_a_check_of_the_policy(
    ready: Host, tmp_path: Path
) -> None:
    (pack,) = (path for path in (tmp_path / "repository" / "packs").rglob("*") if path.is_file())
    whole = pack.read_bytes()
    pack.chmod(0o600)
    pack.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ready.run(
        "check",
        "--repository",
        tmp_path / "repository",
        "--read-data",
        "--identity-file",
        tmp_path / "identity.txt",
        code=5,
    )
    assert pack.name[:16] in ready.run("check", "crm", code=5).out
    pack.write_bytes(whole)
    quiet(ready.run("check", "crm"))
    assert ready.run("status", "--json").one("status")["concerns"] == []
    assert ready.run("backup", "crm", "--incremental", "--json").one("snapshot")["kind"] == "incremental"


def test_a_check_whose_note_cannot_be_read_keeps_no_backup_from_being_taken(ready: Host) -> None:
    (state,) = (path for path in ready.state.iterdir() if (path / "crm").is_dir() and path.name != "schedule")
    (state / "~check.json").mkdir()
    done = ready.run("backup", "crm")
    assert "what checks found damaged is not known" in done.err
    assert len(ready.snapshots("crm")) == 2


def test_a_full_disk_leaves_the_last_snapshot_and_no_half_file(
    ready: Host, tmp_path: Path, small_disk: list[str]
) -> None:
    """The state directory, the repository and the target in turn lie on a disk that is too small."""
    crm(tmp_path / "large.db", rows=1500)
    policy = ready.cwd / "policies" / "crm.yaml"
    policy.write_text(policy.read_text().replace(str(tmp_path / "crm.db"), str(tmp_path / "large.db")))
    mounted = [*small_disk, str(tmp_path / "repository")]
    full = ready.run("backup", "crm", "--json", prefix=mounted, code=4)
    assert full.error["code"] == "storage-full"
    assert len(ready.snapshots("crm")) == 1
    quiet(ready.run("backup", "crm"))

    (ready.cwd / "small").mkdir()
    mounted = [*small_disk, str(ready.cwd / "small")]
    full = ready.run("restore", "crm", "--to", "small/out.db", "--json", prefix=mounted, code=9)
    assert full.error["code"] == "disk-full"


@pytest.fixture
def small_disk() -> list[str]:
    """The beginning of a command line that ends with a directory and a program.

    The program runs with a copy of that directory on a file system of its own that has 1 MiB of room left.
    """
    script = (
        'copy=$(mktemp -d) && cp -a "$1/." "$copy" && size=$(du -sk "$copy" | cut -f1) && '
        'mount -t tmpfs -o size=$((size + 1024))k none "$1" && cp -a "$copy/." "$1" && rm -rf "$copy" && '
        'shift && exec "$@"'
    )
    # Only a user namespace of its own lets somebody else than root mount something.
    for own in (["unshare", "--mount"], ["unshare", "--mount", "--user", "--map-root-user"]):
        if subprocess.run([*own, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
            return [*own, "sh", "-c", script, "sh"]
    pytest.fail("neither root nor user namespaces: no test of a full disk can be made here")
