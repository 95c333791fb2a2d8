"""What trials find out, and how storages are opened and wrapped."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
)
from crmbackup.core.secrets import Secret
from crmbackup.storage.address import Credentials, LocalAddress, S3Address
from crmbackup.storage.base import Capabilities, Storage
from crmbackup.storage.local import LocalStorage
from crmbackup.storage.open import open_storage, probe_address
from crmbackup.storage.probe import PROBES, examine, probe
from crmbackup.storage.wrappers.passing import Passing
from tests.faulty import FakeClock, Faulty

DENIED = StorageDenied("cannot do it", why="HTTP 403")


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty(LocalStorage(tmp_path))


class Trusted(Passing):
    """Says of itself that its condition is atomic."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True)


class Ignoring(Trusted):
    """Takes no notice of the condition."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        super().put(key, data)


class Refusing(Trusted):
    """Does not know the condition."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent:
            raise StorageMisconfigured("cannot write", why="NotImplemented HTTP 501")
        super().put(key, data)


class LookingFirst(Trusted):
    """Honours the condition one after the other, but racing writers all look before any of them writes."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self._looked = threading.Barrier(8)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        if if_absent:
            try:
                self.stat(key)
            except ObjectNotFound:
                pass
            else:
                raise ObjectExists(key)
            if "race" in key:
                self._looked.wait()
        super().put(key, data)


class Replacing(Trusted):
    """Says that the object exists, after replacing it."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        there = [info.key for info in self.list(key)]
        super().put(key, data)
        if if_absent and there:
            raise ObjectExists(key)


class Stale(Passing):
    """Goes on to show deleted objects."""

    def delete(self, key: str) -> None:
        """Forget about it."""


class TestProbe:
    def test_an_atomic_storage(self, faulty: Faulty) -> None:
        assert probe(faulty).conditional_put
        assert list(faulty.list("")) == []
        assert all(call.key.startswith(PROBES) for call in faulty.calls if call.key)

    @pytest.mark.parametrize("kind", [Ignoring, Refusing, LookingFirst, Replacing])
    def test_a_condition_that_does_not_hold(self, faulty: Faulty, kind: type[Trusted]) -> None:
        assert not probe(kind(faulty)).conditional_put
        assert list(faulty.list("")) == []

    def test_what_looks_before_it_writes_is_not_even_tried(self, tmp_path: Path) -> None:
        faulty = Faulty(LocalStorage(tmp_path, conditional_put=False))
        assert not probe(faulty).conditional_put
        assert not [call for call in faulty.calls if call.if_absent]

    @pytest.mark.parametrize(
        ("operation", "right"), [("put", "s3:PutObject"), ("get", "s3:GetObject"), ("list", "s3:ListBucket")]
    )
    def test_a_missing_right_is_named(self, faulty: Faulty, operation: str, right: str) -> None:
        faulty.fail(operation, DENIED, times=None)
        with pytest.raises(StorageDenied) as caught:
            probe(faulty)
        assert right in caught.value.hint
        assert caught.value.why == "HTTP 403"
        assert faulty.called("delete")

    def test_no_right_to_delete_is_fine(self, faulty: Faulty) -> None:
        faulty.fail("delete", DENIED, times=None)
        assert probe(faulty).conditional_put

    @pytest.mark.parametrize("operation", ["put", "get", "stat", "list", "delete"])
    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_it_cleans_up_after_any_failure(self, faulty: Faulty, operation: str, after: int) -> None:
        faulty.fail(operation, StorageFull("no room"), times=1, after=after)
        try:
            probe(faulty)
        except StorageFull:
            assert [info.key for info in faulty.list("")] == []

    def test_a_storage_that_changes_objects(self, faulty: Faulty) -> None:
        faulty.flip_byte(500)
        with pytest.raises(StorageMisconfigured, match="give back"):
            probe(faulty)

    def test_a_storage_that_lists_late(self, faulty: Faulty) -> None:
        class Late(Passing):
            def list(self, prefix: str):
                return iter(())

        with pytest.raises(StorageMisconfigured, match="list"):
            probe(Late(faulty))

    def test_a_storage_that_deletes_late(self, faulty: Faulty) -> None:
        with pytest.raises(StorageMisconfigured, match="deleted"):
            probe(Stale(faulty))


class TestExamine:
    def test_a_clock_that_is_behind_the_storages(self, faulty: Faulty) -> None:
        clock = FakeClock(SystemClock().now() - timedelta(hours=1))
        seen = examine(faulty, "doctor-x", clock)
        assert seen.skew == pytest.approx(3600, abs=60)
        assert seen.may_delete
        assert list(faulty.list("")) == []

    def test_without_the_right_to_delete_one_object_stays_however_often_it_is_done(self, faulty: Faulty) -> None:
        faulty.fail("delete", DENIED, times=None)
        for _ in range(3):
            assert not examine(faulty, "doctor-x", SystemClock()).may_delete
        assert [info.key for info in faulty.list("")] == [f"{PROBES}doctor-x"]

    def test_a_missing_right_is_named(self, faulty: Faulty) -> None:
        faulty.fail("put", DENIED)
        with pytest.raises(StorageDenied) as caught:
            examine(faulty, "doctor-x", SystemClock())
        assert "s3:PutObject" in caught.value.hint


class TestOpen:
    def test_a_directory_has_the_condition_by_nature(self, tmp_path: Path) -> None:
        storage = open_storage(LocalAddress(tmp_path), clock=SystemClock(), conditional_put=None)
        assert storage.capabilities.conditional_put
        storage.put("k", b"data", if_absent=True)
        assert [path.name for path in tmp_path.iterdir()] == ["k"]

    def test_without_the_condition_claims_are_made(self, tmp_path: Path) -> None:
        storage = open_storage(LocalAddress(tmp_path), clock=SystemClock(), conditional_put=False)
        assert storage.capabilities.conditional_put
        storage.put("k", b"data", if_absent=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["claims", "k"]

    def test_a_missing_directory_is_made_only_when_asked(self, tmp_path: Path) -> None:
        address = LocalAddress(tmp_path / "a" / "b")
        for options in ({}, {"read_only": True, "create": True}):
            with pytest.raises(StorageMisconfigured, match="there is no directory"):
                open_storage(address, clock=SystemClock(), conditional_put=None, **options)
        open_storage(address, clock=SystemClock(), conditional_put=None, create=True).put("k", b"data")
        assert (tmp_path / "a" / "b" / "k").read_bytes() == b"data"

    @pytest.mark.parametrize("conditional_put", [True, False])
    def test_read_only_lets_nothing_write(self, tmp_path: Path, conditional_put: bool) -> None:
        storage = open_storage(
            LocalAddress(tmp_path), clock=SystemClock(), conditional_put=conditional_put, read_only=True
        )
        with pytest.raises(StorageDenied):
            storage.put("k", b"data", if_absent=True)
        assert list(tmp_path.iterdir()) == []

    def test_the_upload_rate_holds(self, tmp_path: Path) -> None:
        clock = FakeClock()
        storage = open_storage(LocalAddress(tmp_path), clock=clock, conditional_put=None, upload_rate=1000)
        for number in range(3):
            storage.put(f"k{number}", bytes(500))
        assert sum(clock.pauses) == pytest.approx(1.0)

    def test_failed_calls_are_repeated(self, tmp_path: Path) -> None:
        clock = FakeClock()
        root = tmp_path / "root"
        storage = open_storage(LocalAddress(root), clock=clock, conditional_put=None, create=True, attempts=3)
        root.rename(tmp_path / "elsewhere")
        with pytest.raises(StorageUnavailable, match="tried 3 times"):
            storage.put("k", b"data")
        assert len(clock.pauses) == 2

    def test_all_that_a_worker_needs_can_be_sent_to_it(self) -> None:
        address = S3Address("bucket", "prefix", endpoint="http://127.0.0.1:1", region="x", sse="AES256")
        sent = (address, Credentials(Secret("a"), Secret("b")), LocalAddress(Path("/srv")), SystemClock())
        assert pickle.loads(pickle.dumps(sent))[:3] == sent[:3]

    def test_opening_s3_sends_nothing(self) -> None:
        address = S3Address("bucket", endpoint="http://127.0.0.1:1")
        storage = open_storage(address, clock=FakeClock(), conditional_put=False)
        assert storage.location == "s3://bucket?endpoint=http://127.0.0.1:1"
        storage.close()

    def test_probing_needs_the_directory(self, tmp_path: Path) -> None:
        with pytest.raises(StorageMisconfigured):
            probe_address(LocalAddress(tmp_path / "none"), clock=FakeClock())
        assert list(tmp_path.iterdir()) == []


def test_a_directory_is_opened_without_boto3() -> None:
    code = "import sys, crmbackup.storage.open; print('boto3' in sys.modules, 'botocore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_missing_boto3_is_explained() -> None:
    code = """
import sys
sys.modules["boto3"] = None
from crmbackup.core.errors import StorageMisconfigured
from crmbackup.storage.address import S3Address
from crmbackup.storage.s3 import S3Storage
try:
    S3Storage(S3Address("bucket"), None)
except StorageMisconfigured as error:
    print(error.hint)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "crmbackup[s3]" in done.stdout
