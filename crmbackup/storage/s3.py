"""Objects in an S3 bucket, by boto3.

Nothing is repeated here (`Retrying` does that) and nothing is sent before the first call. An upload carries its MD5,
or with checksums=when_supported boto3's CRC, so that a server refuses what was damaged on its way.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from crmbackup.core.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageMisconfigured,
    StorageUnavailable,
    UsageError,
)
from crmbackup.storage.address import Credentials, S3Address, format_address
from crmbackup.storage.base import FOREVER, Capabilities, ObjectInfo, Storage, check_key
from crmbackup.storage.ranges import beyond_end, check_range

T = TypeVar("T")

#: Objects larger than this go up in parts. Servers take 5 GiB in one piece, but a broken upload of that begins anew.
SINGLE_PUT_BYTES: Final = 64 * 1024 * 1024
PART_BYTES: Final = 32 * 1024 * 1024

_CONNECTIONS = 16
_PART_FIELDS = ("ETag", "ChecksumCRC32")


class S3Storage(Storage):
    """The objects below the address's prefix. One client, shared by all threads.

    Listings are collected and sorted before the first object is given, since not every server lists in key order:
    about 300 bytes of memory an object.

    Args:
        address: bucket, prefix and options.
        credentials: None lets boto3 look in its own places: environment, files, instance role.
        conditional_put: whether the server's `If-None-Match: *` is to be relied on; `probe` finds out. If not,
            put(if_absent=True) looks before it writes, which is not atomic, and `Claiming` belongs around it.

    Raises StorageMisconfigured when boto3 is not installed.
    """

    def __init__(self, address: S3Address, credentials: Credentials | None, *, conditional_put: bool = False) -> None:
        try:
            import boto3  # noqa: F401 - only to fail early; it is slow to load and not always installed
        except ImportError as error:
            raise StorageMisconfigured(
                "S3 storage needs boto3", why=str(error), hint="install it with: pip install 'crmbackup[s3]'"
            ) from error
        self._address = address
        self._credentials = credentials
        self._capabilities = Capabilities(conditional_put=conditional_put)
        self._location = format_address(address)
        self._prefix = f"{address.prefix}/" if address.prefix else ""
        self._lock = threading.Lock()
        self._client: Any = None
        self._locks: bool | None = None

    @property
    def location(self) -> str:
        return self._location

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        name = self._name(key)
        condition: dict[str, Any] = {}
        if if_absent and self._capabilities.conditional_put:
            condition["IfNoneMatch"] = "*"
        elif if_absent and self._is_there(key):
            raise self._exists(key)
        try:
            if len(data) > SINGLE_PUT_BYTES:
                self._put_parts(key, name, data, condition)
            else:
                self._put_whole(key, name, data, condition)
        except ObjectExists as error:
            raise self._exists(key) from error

    def _put_whole(self, key: str, name: str, data: bytes | bytearray, condition: Mapping[str, Any]) -> None:
        options = {**self._object_options(), **self._digest(data), **condition}
        self._call(
            f"write {key} to",
            lambda client: client.put_object(Bucket=self._address.bucket, Key=name, Body=data, **options),
        )

    def _put_parts(self, key: str, name: str, data: bytes | bytearray, condition: Mapping[str, Any]) -> None:
        """Upload in parts; nothing is seen before the last call, and an upload that failed is given up."""
        doing = f"write {key} to"
        place = {"Bucket": self._address.bucket, "Key": name}
        options = self._object_options()
        upload = self._call(doing, lambda client: client.create_multipart_upload(**place, **options))["UploadId"]
        try:
            parts = []
            for number, start in enumerate(range(0, len(data), PART_BYTES), start=1):
                part = data[start : start + PART_BYTES]
                done = self._call(doing, self._part_upload(place, upload, number, part))
                parts.append({"PartNumber": number} | {name: done[name] for name in _PART_FIELDS if name in done})
            self._call(
                doing,
                lambda client: client.complete_multipart_upload(
                    **place, UploadId=upload, MultipartUpload={"Parts": parts}, **condition
                ),
            )
        except BaseException:
            # The error on its way out says more than one of giving up; parts left behind are the bucket's to expire.
            with suppress(StorageError):
                self._call(doing, lambda client: client.abort_multipart_upload(**place, UploadId=upload))
            raise

    def _part_upload(
        self, place: Mapping[str, str], upload: str, number: int, part: bytes | bytearray
    ) -> Callable[[Any], Any]:
        digest = self._digest(part)
        return lambda client: client.upload_part(**place, UploadId=upload, PartNumber=number, Body=part, **digest)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        name = self._name(key)
        check_range(offset, length)
        if (offset > 0 and length is None) or length == 0:
            # S3 has no empty ranges, and answers one that starts at the end with an error.
            size = self.stat(key).size
            if offset > size:
                raise beyond_end(key, offset, length, size)
            length = size - offset if length is None else 0
            if length == 0:
                return b""
        asked = {} if length is None else {"Range": f"bytes={offset}-{offset + length - 1}"}

        def read(client: Any) -> tuple[bytes, str]:
            answer = client.get_object(Bucket=self._address.bucket, Key=name, **asked)
            with closing(answer["Body"]) as body:
                return body.read(), answer.get("ContentRange", "")

        data, given = self._call(f"read {key} from", read, of_object=True)
        if length is not None and len(data) != length:
            raise beyond_end(key, offset, length)
        if offset > 0 and not given.startswith(f"bytes {offset}-"):
            raise StorageUnavailable(
                f"cannot read a part of {key} from {self._location}", why="the server gave another part"
            )
        return data

    def stat(self, key: str) -> ObjectInfo:
        name = self._name(key)
        try:
            found = self._call(
                f"look at {key} in",
                lambda client: client.head_object(Bucket=self._address.bucket, Key=name),
                of_object=True,
            )
        except ObjectNotFound as error:
            self._check_bucket()
            raise ObjectNotFound(f"there is no {key} in {self._location}") from error
        return ObjectInfo(key, int(found["ContentLength"]), found["LastModified"].astimezone(UTC))

    def _check_bucket(self) -> None:
        """The answer to HEAD does not tell a missing object from a missing bucket, so look for the latter."""
        bucket = self._address.bucket
        try:
            self._call("find", lambda client: client.head_bucket(Bucket=bucket), of_object=True)
        except ObjectNotFound as error:
            raise StorageMisconfigured(
                f"there is no bucket {bucket}", why=error.why, hint="create it, or correct its name or the endpoint"
            ) from error
        except StorageError:
            return  # it may not be looked at, which says nothing about the object

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found: dict[str, ObjectInfo] = {}
        asked = {"Bucket": self._address.bucket, "Prefix": self._prefix + prefix}
        while True:
            page = self._call(f"list {prefix} in", lambda client: client.list_objects_v2(**asked))
            for entry in page.get("Contents", []):
                key = entry["Key"][len(self._prefix) :]
                # Consoles leave "folder/" objects behind; servers on file systems take "a//" for "a/".
                if key.startswith(prefix) and _is_key(key):
                    found[key] = ObjectInfo(key, int(entry["Size"]), entry["LastModified"].astimezone(UTC))
            if not page.get("IsTruncated"):
                break
            asked["ContinuationToken"] = page["NextContinuationToken"]
        for key in sorted(found):
            yield found[key]

    def delete(self, key: str) -> None:
        name = self._name(key)
        with suppress(ObjectNotFound):
            self._call(
                f"delete {key} from",
                lambda client: client.delete_object(Bucket=self._address.bucket, Key=name),
                of_object=True,
            )

    def close(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    def _exists(self, key: str) -> ObjectExists:
        return ObjectExists(f"{key} is already in {self._location}")

    def object_lock(self) -> str:
        """Whether the bucket keeps objects from being deleted, in words. Raises StorageError when it does not tell."""
        from botocore.exceptions import ClientError

        def ask(client: Any) -> dict[str, Any]:
            try:
                answer = client.get_object_lock_configuration(Bucket=self._address.bucket)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") == "ObjectLockConfigurationNotFoundError":
                    return {}
                raise
            return dict(answer.get("ObjectLockConfiguration") or {})

        found = self._call("ask for the object lock of", ask)
        if found.get("ObjectLockEnabled") != "Enabled":
            return "off"
        rule = (found.get("Rule") or {}).get("DefaultRetention") or {}
        span = [f"{rule[unit]} {unit.lower()}" for unit in ("Days", "Years") if rule.get(unit)]
        return f"{rule.get('Mode', '?').lower()}, {span[0]}" if span else "on, without a default retention"

    def kept_until(self, key: str) -> datetime | None:
        """One request for each object, where the bucket locks objects. Without the right to see locks it tells of none."""
        if self._locks is None:
            try:
                self._locks = self.object_lock() != "off"
            except StorageDenied:
                self._locks = True  # each object may tell all the same
            except StorageMisconfigured:
                self._locks = False  # the server knows no locks
        if not self._locks:
            return None
        name = self._name(key)
        found = self._call(
            f"ask for the lock of {key} in",
            lambda client: client.head_object(Bucket=self._address.bucket, Key=name),
            of_object=True,
        )
        if found.get("ObjectLockLegalHoldStatus") == "ON":
            return FOREVER
        until = found.get("ObjectLockRetainUntilDate")
        return until.astimezone(UTC) if until else None

    def _is_there(self, key: str) -> bool:
        try:
            self.stat(key)
        except ObjectNotFound:
            return False
        return True

    def _object_options(self) -> dict[str, str]:
        named = {
            "StorageClass": self._address.storage_class,
            "ServerSideEncryption": self._address.sse,
            "SSEKMSKeyId": self._address.sse_kms_key_id,
        }
        return {name: value for name, value in named.items() if value is not None}

    def _digest(self, data: bytes | bytearray) -> dict[str, str]:
        if self._address.checksums == "when_supported":
            return {}
        return {"ContentMD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}

    def _call(self, doing: str, call: Callable[[Any], T], *, of_object: bool = False) -> T:
        """One request. `of_object`: not found means the object, not the bucket or the server's path."""
        from crmbackup.storage.s3_errors import RAISED, s3_error, stopped

        handled = sys.exception()
        try:
            return call(self._connected())
        except RAISED as error:
            stop = stopped(error, handled)
            if stop:
                raise stop from None
            raise s3_error(error, f"{doing} {self._location}", of_object=of_object) from error

    def _connected(self) -> Any:
        # A stub-typed client does not take options collected in a dict, so Any it is. Looking for credentials in
        # boto3's own places can go to the network: hence not in __init__.
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        from botocore.config import Config
        from botocore.session import Session

        address = self._address
        elsewhere = "virtual" if address.endpoint else "auto"
        keys: dict[str, Any] = {}
        if self._credentials is not None:
            token = self._credentials.session_token
            keys = {
                "aws_access_key_id": self._credentials.access_key_id.reveal(),
                "aws_secret_access_key": self._credentials.secret_access_key.reveal(),
                "aws_session_token": None if token is None else token.reveal(),
            }
        options: dict[str, Any] = {
            "connect_timeout": address.connect_timeout,
            "read_timeout": address.read_timeout,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": _CONNECTIONS,
            "request_checksum_calculation": address.checksums,
            "response_checksum_validation": address.checksums,
            "s3": {"addressing_style": "path" if address.uses_path_style else elsewhere},
            # The address alone says where the objects are, or a recovery sheet would be of no use.
            "ignore_configured_endpoint_urls": True,
            "tcp_keepalive": True,
            "user_agent_extra": "crmbackup",
        }
        session = Session()
        session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))
        client = session.create_client(
            "s3",
            endpoint_url=address.endpoint,
            region_name=address.region or ("us-east-1" if address.endpoint else None),
            config=Config(**options),
            **keys,
        )
        if address.endpoint or address.region:
            client.meta.events.register("before-call.s3", _stay)
        return client


@functools.cache
def _descriptions(path: str | None) -> Any:
    """What botocore knows of S3's interface, which takes it a tenth of a second to read: once, not for each client.

    Workers are forked after the first request, so they have it too.
    """
    from botocore.loaders import create_loader

    return create_loader(path)


def _stay(params: Any, **_: Any) -> None:
    """Mark a request as redirected already, so that botocore does not look for the bucket's region by itself.

    It asks the server again to find it, and for a server that redirects without naming a region it does so until the
    stack is used up.
    """
    params["context"].get("s3_redirect", {})["redirected"] = True


def _is_key(text: str) -> bool:
    """Whether it can be ours."""
    try:
        check_key(text)
    except UsageError:
        return False
    return True
