"""A life on real object storage, and its restore on machines that know nothing."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from tests.e2e.gate import Gate
from tests.e2e.product import Host, content, quiet, workday, write_policy
from tests.servers import S3Server

pytestmark = pytest.mark.e2e
PASSPHRASE = "otter granite velvet canal"


@pytest.fixture
def credentials(seaweed: S3Server) -> dict[str, str]:
    """What a new host gets from its sysadmin."""
    return {"AWS_ACCESS_KEY_ID": seaweed.access_key, "AWS_SECRET_ACCESS_KEY": seaweed.secret_key}


def new_host(root: Path, environ: dict[str, str]) -> Host:
    """A machine with nothing but an environment: not even directories of crmbackup's own are named."""
    found = Host.make(root, **environ, CRMBACKUP_CONFIG_DIR="", CRMBACKUP_STATE_DIR="")
    assert list(found.home.iterdir()) == []
    return found


def secrets_of(seaweed: S3Server, identity: str) -> list[bytes]:
    """Every form in which a secret could leak."""
    seed = base64.b32decode("".join(identity.split("-")[1:]))[:32]
    folded = ["-".join(identity.split("-")[i : i + 3]) for i in range(1, 14, 3)]
    texts = [seaweed.secret_key, PASSPHRASE, identity, identity.replace("-", ""), seed.hex(), *folded]
    return [*(text.encode() for text in texts), seed]


def test_a_life_on_s3_ends_on_a_new_host_and_no_secret_is_anywhere(
    host: Host, database: Path, seaweed: S3Server, credentials: dict[str, str], tmp_path: Path
) -> None:
    safe = tmp_path / "safe"
    safe.mkdir()
    (safe / "secret").write_text(seaweed.secret_key + "\n")
    (safe / "passphrase").write_text(PASSPHRASE + "\n")
    address = f"s3://{seaweed.make_bucket()}/crm/backups"
    inside = [
        f"endpoint: {seaweed.endpoint}",
        "access_key_id: {env: S3_ID}",
        f"secret_access_key: {{command: [cat, {safe / 'secret'}]}}",
        f"passphrase: {{file: {safe / 'passphrase'}}}",
    ]
    reports = f"drill: {{reports: {host.cwd / 'reports'}}}"
    policy = write_policy(host.cwd / "crm.yaml", database, address, inside=inside, more=reports)
    host.environ["S3_ID"] = seaweed.access_key

    host.watched("init", policy, "--identity-out", safe / "identity.txt")
    quiet(host.watched("backup", policy))
    workday(database)
    quiet(host.watched("backup", policy, "--incremental"))
    host.watched("snapshots", policy)
    host.watched("show", policy, "-v")
    host.watched("restore", policy, "--to", tmp_path / "same.db", "-v")
    host.watched("drill", policy, "-v")
    host.watched("check", policy, "--read-data", "-v", "--json")
    wanted = content(database)
    assert content(tmp_path / "same.db") == wanted
    database.unlink()

    new = new_host(tmp_path / "new", credentials)
    where = ("--repository", f"{address}?endpoint={seaweed.endpoint}")
    key = ("--identity-file", safe / "identity.txt")
    assert [each["kind"] for each in new.snapshots(*where)] == ["full", "incremental"]
    new.watched("restore", *where, *key, "--to", "restored.db")
    assert content(new.cwd / "restored.db") == wanted

    (safe / "policy.yaml").write_text(policy.read_text())
    new.environ["S3_ID"] = seaweed.access_key
    result = new.watched("drill", safe / "policy.yaml", *key, "--json").one("drill")
    assert result["verdicts"]["validation"] == "passed"
    assert "is genuine" in new.run("report", "verify", result["report"], *where).out

    identity = (safe / "identity.txt").read_text().splitlines()[-1]
    forms = secrets_of(seaweed, identity)
    seen = [text.encode() for each in (host, new) for text in (*each.printed, *each.command_lines)]
    files = [path for each in (host, new) for root in (each.home, each.cwd) for path in root.rglob("*")]
    kept = [path.read_bytes() for path in files if path.is_file()]
    assert len(kept) > 5
    assert any(b"backup" in line for line in seen)
    assert not [form for form in forms for text in (*seen, *kept) if form in text]

    client = seaweed.client()
    bucket = address.split("/")[2]
    stored = [
        client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
        for each in client.list_objects_v2(Bucket=bucket)["Contents"]
    ]
    client.close()
    assert len(stored) > 4
    assert not [form for form in forms for data in stored if form in data]


def test_the_passphrase_is_enough_on_a_new_host(
    host: Host, database: Path, seaweed: S3Server, credentials: dict[str, str], tmp_path: Path
) -> None:
    address = f"s3://{seaweed.make_bucket()}/b"
    inside = [f"endpoint: {seaweed.endpoint}"]
    policy = write_policy(host.cwd / "crm.yaml", database, address, inside=inside)
    host.environ |= credentials
    (tmp_path / "passphrase").write_text(PASSPHRASE)
    sheet = host.run("init", policy, "--passphrase-file", tmp_path / "passphrase").out
    assert "under the passphrase" in sheet
    host.run("backup", policy)

    new = new_host(tmp_path / "new", credentials)
    where = ("--repository", f"{address}?endpoint={seaweed.endpoint}", "--to", "restored.db")
    none = new.run("restore", *where, code=6)
    assert "--passphrase-file" in none.err
    wrong = new.run("restore", *where, "--json", env={"CRMBACKUP_PASSPHRASE": "not the right one"}, code=12)
    assert wrong.error["code"] == "wrong-passphrase"
    assert not (new.cwd / "restored.db").exists()
    new.run("restore", *where, env={"CRMBACKUP_PASSPHRASE": PASSPHRASE})
    assert content(new.cwd / "restored.db") == content(database)


def test_storage_that_is_gone_is_said_at_once_and_the_failure_is_in_the_catalog(
    host: Host, on_s3: Path, gate: Gate
) -> None:
    host.run("backup", on_s3)
    gate.breaks("/")
    failed = host.run("backup", on_s3, "--json", code=4)
    assert failed.error["code"] == "storage-unavailable"
    run = host.run("catalog", "runs", on_s3, "--limit", "1", "--json").one("run")
    assert (run["outcome"], run["error_code"]) == ("failed", "storage-unavailable")
    gate.open()
    quiet(host.run("backup", on_s3))


def test_storage_that_vanishes_midway_leaves_nothing_half(host: Host, on_s3: Path, gate: Gate, database: Path) -> None:
    host.run("backup", on_s3)
    gate.breaks("/backups/packs/")
    for command in (("backup", on_s3, "--full"), ("restore", on_s3, "--to", "out.db"), ("check", on_s3, "--read-data")):
        assert host.run(*command, "--json", code=4).error["code"] == "storage-unavailable"
        gate.open()
        assert len(host.snapshots(on_s3)) == 1
        assert [path.name for path in host.cwd.iterdir()] == ["crm.yaml"]
        gate.breaks("/backups/packs/")
    gate.open()
    quiet(host.run("backup", on_s3, "--full"))
    host.run("restore", on_s3, "--to", "out.db")
    assert content(host.cwd / "out.db") == content(database)


def test_wrong_credentials_and_buckets_are_told_apart(host: Host, database: Path, seaweed: S3Server) -> None:
    key = {"AWS_ACCESS_KEY_ID": seaweed.access_key, "AWS_SECRET_ACCESS_KEY": "wrong"}
    inside = [f"endpoint: {seaweed.endpoint}", "retries: 1"]
    policy = write_policy(host.cwd / "a.yaml", database, f"s3://{seaweed.make_bucket()}/x", inside=inside)
    out = ("--identity-out", "id.txt", "--no-passphrase", "--json")
    assert host.run("init", policy, *out, env=key, code=4).error["code"] == "storage-denied"
    nowhere = write_policy(host.cwd / "b.yaml", database, "s3://no-such-bucket/x", inside=inside)
    right = key | {"AWS_SECRET_ACCESS_KEY": seaweed.secret_key}
    assert host.run("init", nowhere, *out, env=right, code=4).error["code"] == "storage-misconfigured"
    assert not (host.cwd / "id.txt").exists()
