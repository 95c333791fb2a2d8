"""Fixtures for all tests. Servers start when the first test of a worker asks for them, once for all of its tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres import pg12, pg15, pg18
from tests.servers import S3Server, rclone_server, seaweed_server

__all__ = ["pg12", "pg15", "pg18"]

# No time is asserted. CI draws the same examples each time, so that a red run is about the change; others draw anew.
# HYPOTHESIS_MAX_EXAMPLES=1000 looks longer, for those tests that do not say themselves how much they need.
settings.register_profile(
    "crmbackup",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_MAX_EXAMPLES", "40")),
    derandomize=os.environ.get("CI") == "true",
)
settings.load_profile("crmbackup")


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
