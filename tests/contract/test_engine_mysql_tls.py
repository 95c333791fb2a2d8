"""TLS to a real server that takes no plain connections: each `ssl_mode` lets through what it should, and nothing else."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from crmbackup.core.errors import SourceDenied, SourceUnavailable, UsageError
from crmbackup.core.secrets import Secret
from crmbackup.engines.mysql.connection import connect, execute, parse_server, source_errors
from tests.mariadb import running_mariadb

PASSWORD = Secret("hush")


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """Two authorities, and a server's certificate by the first for the name `localhost`."""
    # Not pytest's own directory: under root the server runs as another user.
    path = Path(tempfile.mkdtemp(prefix="crmbackup-test-"))
    for name in ("ca", "other"):
        openssl(
            path, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
            "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    openssl(
        path, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost",
        "-keyout", "server.key", "-out", "server.csr",
    )  # fmt: skip
    (path / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        path, "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "3650", "-extfile", "names", "-out", "server.pem",
    )  # fmt: skip
    path.chmod(0o755)
    for each in path.iterdir():
        each.chmod(0o644)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def port(certificates: Path) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = int(free.getsockname()[1])
    settings = {
        "skip_networking": "0",
        "bind_address": "127.0.0.1",
        "port": str(number),
        "require_secure_transport": "1",
        "ssl_cert": str(certificates / "server.pem"),
        "ssl_key": str(certificates / "server.key"),
    }
    with running_mariadb(settings=settings) as server:
        with server.connect() as root, root.cursor() as cursor:
            cursor.execute(f"CREATE USER crm@'127.0.0.1' IDENTIFIED BY '{PASSWORD.reveal()}'")
        yield number


def cipher(port: int, query: str, host: str = "localhost") -> str:
    """How a connection is encrypted. Raises SourceError kinds."""
    server = parse_server(f"mysql://crm@{host}:{port}/?{query}", PASSWORD)
    with source_errors(server), connect(server) as connection:
        return str(execute(connection, "SHOW STATUS LIKE 'Ssl_cipher'")[0][1])


def test_each_mode_checks_what_it_says(port: int, certificates: Path) -> None:
    ca, other = f"ssl_ca={certificates / 'ca.pem'}", f"ssl_ca={certificates / 'other.pem'}"
    for query in ("", "ssl_mode=preferred", "ssl_mode=required", ca, f"ssl_mode=verify-identity&{ca}"):
        assert cipher(port, query), query
    assert cipher(port, f"ssl_mode=verify-ca&{ca}", "127.0.0.1")
    for query, host, why in (
        (other, "localhost", "certificate verify failed"),
        ("ssl_mode=verify-identity", "localhost", "certificate verify failed"),
        (f"ssl_mode=verify-identity&{ca}", "127.0.0.1", "IP address mismatch"),
        ("ssl_mode=disabled", "localhost", "Access denied|insecure transport are prohibited"),  # before 11, and since
    ):
        with pytest.raises((SourceUnavailable, SourceDenied)) as error:
            cipher(port, query, host)
        assert re.search(why, error.value.why), query
        assert "ssl" in error.value.hint.lower() or "tls" in error.value.hint.lower(), error.value.hint
    for query, file in (
        ("ssl_ca=/nowhere.pem", "/nowhere.pem"),
        (f"ssl_mode=required&ssl_cert={certificates / 'names'}", "names"),
    ):
        with pytest.raises(UsageError) as usage:
            cipher(port, query)
        assert file in usage.value.why
