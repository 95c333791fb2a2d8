"""Fixtures for all tests. Servers start when the first test of a worker asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers import S3Server, rclone_server, seaweed_server


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A SeaweedFS server: `endpoint`, `access_key`, `secret_key`, `make_bucket()`, `address()`."""
    with seaweed_server(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An rclone S3 server, which ignores the condition of conditional puts."""
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server
