"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.gate import Gate, gate_before
from tests.e2e.product import Host, crm, write_policy
from tests.servers import S3Server

# The program honours that nohup has SIGHUP ignored, and so would every process of a test that is run under it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A machine that has never seen crmbackup."""
    return Host.make(tmp_path / "host")


@pytest.fixture(scope="session")
def _crm_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crm(tmp_path_factory.mktemp("crm") / "crm.db")


@pytest.fixture
def database(_crm_once: Path, tmp_path: Path) -> Path:
    """A small CRM database of its own."""
    return Path(shutil.copy(_crm_once, tmp_path / "crm.db"))


@pytest.fixture
def gate(seaweed: S3Server) -> Iterator[Gate]:
    """A gate before SeaweedFS."""
    with gate_before(seaweed.endpoint) as found:
        yield found


@pytest.fixture
def ready(host: Host, database: Path, tmp_path: Path) -> Host:
    """A host with the policy `crm` on a local repository with an identity file, and one full snapshot."""
    (host.cwd / "policies").mkdir()
    identity = ["identity: {file: " + str(tmp_path / "identity.txt") + "}"]
    write_policy(host.cwd / "policies" / "crm.yaml", database, str(tmp_path / "repository"), inside=identity)
    host.run("init", "crm", "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    host.run("backup", "crm")
    return host


@pytest.fixture
def on_s3(host: Host, database: Path, seaweed: S3Server, gate: Gate, tmp_path: Path) -> Path:
    """A policy on S3, reached through the gate; its repository is made, no snapshot is."""
    host.environ |= {"S3_ID": seaweed.access_key, "S3_SECRET": seaweed.secret_key}
    inside = [
        f"endpoint: {gate.endpoint}",
        "access_key_id: {env: S3_ID}",
        "secret_access_key: {env: S3_SECRET}",
        "retries: 1",
        "identity: {file: " + str(tmp_path / "identity.txt") + "}",
    ]
    policy = write_policy(host.cwd / "crm.yaml", database, f"s3://{seaweed.make_bucket()}/backups", inside=inside)
    host.run("init", policy, "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    return policy
