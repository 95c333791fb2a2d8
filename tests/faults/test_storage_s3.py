"""S3 servers and networks that fail, over real sockets."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crmbackup.core.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
)
from crmbackup.core.secrets import Secret
from crmbackup.storage.address import Credentials, S3Address
from crmbackup.storage.base import Storage
from crmbackup.storage.s3 import PART_BYTES, SINGLE_PUT_BYTES, S3Storage
from crmbackup.storage.wrappers.retrying import Retrying
from tests.faulty import FakeClock
from tests.servers import FaultyHttp, S3Server, faulty_http, free_ports

CREDENTIALS = Credentials(Secret("AKIAEXAMPLE"), Secret("hunter2hunter2"))
MODIFIED = {"Last-Modified": "Sun, 01 Mar 2026 00:00:00 GMT"}


@pytest.fixture
def http() -> Iterator[FaultyHttp]:
    with faulty_http() as server:
        yield server


@pytest.fixture
def storage(http: FaultyHttp) -> Iterator[S3Storage]:
    address = S3Address("bucket", "p", endpoint=http.endpoint, connect_timeout=5, read_timeout=0.5)
    made = S3Storage(address, CREDENTIALS, conditional_put=True)
    yield made
    made.close()


def _calls(storage: Storage) -> dict[str, Callable[[], object]]:
    return {
        "put": lambda: storage.put("k", b"data"),
        "put if absent": lambda: storage.put("k", b"data", if_absent=True),
        "get": lambda: storage.get("k"),
        "get a range": lambda: storage.get("k", 1, 2),
        "stat": lambda: storage.stat("k"),
        "list": lambda: list(storage.list("")),
        "delete": lambda: storage.delete("k"),
    }


NAMES = ["put", "put if absent", "get", "get a range", "stat", "list", "delete"]


@pytest.mark.parametrize("name", NAMES)
def test_broken_networks_are_worth_another_try(storage: S3Storage, http: FaultyHttp, name: str) -> None:
    for fault in (
        http.reset,
        http.hang,
        http.error(503, "SlowDown"),
        http.error(500, "InternalError"),
        http.status(502),
    ):
        http.answers[:] = [fault]
        http.requests.clear()
        with pytest.raises(StorageUnavailable) as caught:
            _calls(storage)[name]()
        assert storage.location in caught.value.what
        assert len(http.requests) == 1, "botocore must not repeat anything by itself"


@pytest.mark.parametrize("name", NAMES)
def test_nobody_listens(name: str) -> None:
    storage = S3Storage(S3Address("bucket", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}"), CREDENTIALS)
    try:
        with pytest.raises(StorageUnavailable):
            _calls(storage)[name]()
    finally:
        storage.close()


def test_a_busy_server_is_asked_again(storage: S3Storage, http: FaultyHttp) -> None:
    busy = http.error(503, "SlowDown")
    http.answers[:] = [busy, busy, http.status(200, headers={"ETag": '"x"'}), busy, busy, http.status(200, b"data")]
    clock = FakeClock()
    retrying = Retrying(storage, clock)
    retrying.put("k", b"data")
    assert retrying.get("k") == b"data"
    assert [request.method for request in http.requests] == ["PUT"] * 3 + ["GET"] * 3
    assert len(clock.pauses) == 4


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 1000)])
def test_a_body_that_breaks_off(storage: S3Storage, http: FaultyHttp, offset: int, length: int | None) -> None:
    http.answers[:] = [http.cut(1000, b"x" * 400)]
    with pytest.raises(StorageUnavailable):
        storage.get("k", offset, length)


@pytest.mark.parametrize(
    ("status", "body", "given"),
    [
        (206, b"xx", "bytes 100-101/200"),  # shorter than asked
        (206, b"x" * 11, "bytes 100-110/200"),  # longer
        (206, b"x" * 10, "bytes 0-9/200"),  # another part
        (200, b"x" * 10, ""),  # a server that ignores ranges, and an object as long as the range
        (200, b"x" * 200, ""),
    ],
)
def test_another_range_than_asked(storage: S3Storage, http: FaultyHttp, status: int, body: bytes, given: str) -> None:
    http.answers[:] = [http.status(status, body, {"Content-Range": given} if given else {})]
    with pytest.raises(StorageUnavailable):
        storage.get("k", 100, 10)


def test_the_range_that_was_asked(storage: S3Storage, http: FaultyHttp) -> None:
    http.answers[:] = [http.status(206, b"0123456789", {"Content-Range": "bytes 100-109/200"})]
    assert storage.get("k", 100, 10) == b"0123456789"
    assert http.requests[0].headers["Range"] == "bytes=100-109"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", StorageDenied),
        (403, "InvalidAccessKeyId", StorageDenied),
        (403, "SignatureDoesNotMatch", StorageDenied),
        (403, "RequestTimeTooSkewed", StorageDenied),
        (400, "ExpiredToken", StorageDenied),
        (403, "Unheard", StorageDenied),
        (401, "", StorageDenied),
        (404, "NoSuchBucket", StorageMisconfigured),
        (400, "InvalidBucketName", StorageMisconfigured),
        (400, "AuthorizationHeaderMalformed", StorageMisconfigured),
        (301, "PermanentRedirect", StorageMisconfigured),
        (501, "NotImplemented", StorageMisconfigured),
        (501, "", StorageMisconfigured),
        (404, "", StorageMisconfigured),
        (409, "ConditionalRequestConflict", StorageUnavailable),
        (409, "", StorageUnavailable),
        (400, "RequestTimeout", StorageUnavailable),
        (400, "BadDigest", StorageUnavailable),
        (429, "", StorageUnavailable),
        (503, "SlowDown", StorageUnavailable),
        (500, "", StorageUnavailable),
        (507, "", StorageFull),
        (507, "XMinioStorageFull", StorageFull),
        (403, "QuotaExceeded", StorageFull),
        (412, "PreconditionFailed", ObjectExists),
        (400, "Unheard", StorageError),
    ],
)
def test_answers_to_a_conditional_put(
    storage: S3Storage, http: FaultyHttp, status: int, code: str, kind: type[StorageError]
) -> None:
    http.answers[:] = [http.error(status, code, "the server's words") if code else http.status(status)]
    with pytest.raises(StorageError) as caught:
        storage.put("k", b"data", if_absent=True)
    assert type(caught.value) is kind
    told = f"{caught.value} {caught.value.hint}"
    assert "hunter2" not in told
    if kind is not ObjectExists:
        assert "s3://bucket/p" in caught.value.what
        assert not code or (code in told and "the server's words" in told)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("status", [301, 302, 307])
def test_redirects_are_not_followed(storage: S3Storage, http: FaultyHttp, name: str, status: int) -> None:
    http.answers[:] = [http.status(status, headers={"Location": f"{http.endpoint}/elsewhere"})]
    with pytest.raises(StorageMisconfigured, match=str(status)):
        _calls(storage)[name]()
    assert len(http.requests) == 1


def test_an_object_that_is_not_there(storage: S3Storage, http: FaultyHttp) -> None:
    http.answers[:] = [http.error(404, "NoSuchKey")]
    with pytest.raises(ObjectNotFound):
        storage.get("k")
    storage.delete("k")
    http.answers[:] = [http.status(404), http.status(200)]
    with pytest.raises(ObjectNotFound):
        storage.stat("k")


@pytest.mark.parametrize("status", [400, 403, 405, 501, 503])
def test_a_bucket_that_may_not_be_looked_at(storage: S3Storage, http: FaultyHttp, status: int) -> None:
    http.answers[:] = [http.status(404), http.status(status)]
    with pytest.raises(ObjectNotFound):
        storage.stat("k")


def test_answers_that_are_not_of_s3(storage: S3Storage, http: FaultyHttp) -> None:
    http.answers[:] = [http.status(200, b"<html>Please log in to the Wi-Fi")]
    with pytest.raises(StorageError):
        list(storage.list(""))
    http.answers[:] = [http.status(502, b"<html>Bad gateway")]
    with pytest.raises(StorageUnavailable):
        list(storage.list(""))


def test_nothing_is_sent_before_the_first_call(storage: S3Storage, http: FaultyHttp) -> None:
    assert storage.location.startswith("s3://bucket/p?")
    assert not S3Storage(S3Address("bucket"), CREDENTIALS).capabilities.conditional_put
    assert http.requests == []


def test_what_a_put_says_to_the_server(http: FaultyHttp) -> None:
    http.answers[:] = [http.status(200)]
    address = S3Address(
        "bucket", "p", endpoint=http.endpoint, storage_class="STANDARD_IA", sse="aws:kms", sse_kms_key_id="the-key"
    )
    storage = S3Storage(address, CREDENTIALS, conditional_put=True)
    storage.put("k", b"data", if_absent=True)
    storage.put("k", b"data")
    storage.close()
    first, second = http.requests
    assert first.path == "/bucket/p/k"
    assert first.headers["If-None-Match"] == "*"
    assert "If-None-Match" not in second.headers
    for headers in (first.headers, second.headers):
        assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(b"data").digest()).decode()
        assert headers["x-amz-storage-class"] == "STANDARD_IA"
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "the-key"
        assert "hunter2" not in str(headers)


def test_without_a_reliable_condition_it_looks_first(http: FaultyHttp) -> None:
    storage = S3Storage(S3Address("bucket", endpoint=http.endpoint), CREDENTIALS)
    http.answers[:] = [http.status(200, headers=MODIFIED)]
    with pytest.raises(ObjectExists):
        storage.put("k", b"data", if_absent=True)
    http.answers[:] = [http.status(404), http.status(200), http.status(200)]
    storage.put("k", b"data", if_absent=True)
    storage.close()
    assert [request.method for request in http.requests] == ["HEAD", "HEAD", "HEAD", "PUT"]
    assert "If-None-Match" not in http.requests[-1].headers


LARGE = bytes(SINGLE_PUT_BYTES + 1)
STARTED = b"<InitiateMultipartUploadResult><UploadId>upload-1</UploadId></InitiateMultipartUploadResult>"


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_an_upload_in_parts_that_fails_is_given_up(storage: S3Storage, http: FaultyHttp, parts: int) -> None:
    done = http.status(200, headers={"ETag": '"x"'})
    http.answers[:] = [http.status(200, STARTED), *[done] * parts, http.error(503, "SlowDown"), http.status(204)]
    with pytest.raises(StorageUnavailable):
        storage.put("k", LARGE)
    methods = [request.method for request in http.requests]
    assert methods == ["POST", *["PUT"] * min(parts + 1, 3), *(["POST"] if parts == 3 else []), "DELETE"]
    assert http.requests[-1].path == "/bucket/p/k?uploadId=upload-1"


def test_failing_to_give_up_does_not_hide_the_cause(storage: S3Storage, http: FaultyHttp) -> None:
    http.answers[:] = [
        http.status(200, STARTED),
        http.error(507, "XMinioStorageFull"),
        http.error(500, "InternalError"),
    ]
    with pytest.raises(StorageFull):
        storage.put("k", LARGE)


def test_no_credentials_anywhere(http: FaultyHttp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage = S3Storage(S3Address("bucket", endpoint=http.endpoint), None)
    try:
        with pytest.raises(StorageDenied, match="credentials"):
            storage.put("k", b"data")
    finally:
        storage.close()
    assert http.requests == []


def test_the_address_alone_says_where(http: FaultyHttp, monkeypatch: pytest.MonkeyPatch) -> None:
    """boto3 would go elsewhere for these, and a recovery sheet would not know."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    http.answers[:] = [http.status(200, b"data")]
    storage = S3Storage(S3Address("bucket", endpoint=http.endpoint), CREDENTIALS)
    assert storage.get("k") == b"data"
    storage.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_real_server_refuses_wrong_keys(seaweed: S3Server, name: str) -> None:
    wrong = replace(seaweed.credentials, secret_access_key=Secret("hunter2"))
    storage = S3Storage(seaweed.address(), wrong, conditional_put=True)
    try:
        with pytest.raises(StorageDenied):
            _calls(storage)[name]()
    finally:
        storage.close()


@pytest.mark.parametrize("server", ["seaweed", "rclone_s3"])
@pytest.mark.parametrize("name", NAMES)
def test_a_real_server_has_no_such_bucket(request: pytest.FixtureRequest, server: str, name: str) -> None:
    running: S3Server = request.getfixturevalue(server)
    storage = S3Storage(S3Address("nowhere", endpoint=running.endpoint), running.credentials)
    try:
        with pytest.raises(StorageMisconfigured):
            _calls(storage)[name]()
    finally:
        storage.close()


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_a_real_upload_in_parts(seaweed: S3Server, checksums: str) -> None:
    address = replace(seaweed.address("p"), checksums=checksums)
    storage = S3Storage(address, seaweed.credentials, conditional_put=True)
    client = seaweed.client()
    try:
        pattern = hashlib.sha256(b"pattern").digest()
        data = pattern * (SINGLE_PUT_BYTES // 32) + b"end"
        storage.put("large", data, if_absent=True)
        assert storage.stat("large").size == len(data)
        assert hashlib.sha256(storage.get("large")).digest() == hashlib.sha256(data).digest()
        assert storage.get("large", PART_BYTES - 5, 10) == data[PART_BYTES - 5 : PART_BYTES + 5]
        with pytest.raises(ObjectExists):
            storage.put("large", bytes(len(data)), if_absent=True)
        assert storage.get("large", 0, 32) == pattern
        assert "Uploads" not in client.list_multipart_uploads(Bucket=address.bucket)
    finally:
        client.close()
        storage.close()
