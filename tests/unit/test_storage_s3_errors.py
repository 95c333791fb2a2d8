"""botocore's own errors in our terms; what servers answer is told in tests/faults/test_storage_s3.py."""

from __future__ import annotations

import botocore.exceptions as raised
import pytest
from botocore.parsers import ResponseParserError
from urllib3.exceptions import ProtocolError

from crmbackup.core.errors import StorageDenied, StorageError, StorageMisconfigured, StorageUnavailable
from crmbackup.storage.s3_errors import RAISED, s3_error

URL = "https://minio.example.net"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised.NoCredentialsError(), StorageDenied),
        (raised.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), StorageDenied),
        (raised.CredentialRetrievalError(provider="process", error_msg="exit 1"), StorageDenied),
        (raised.SSLError(endpoint_url=URL, error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), StorageMisconfigured),
        (raised.SSLError(endpoint_url=URL, error="EOF occurred"), StorageUnavailable),
        (raised.EndpointConnectionError(endpoint_url=URL, error="name not known"), StorageUnavailable),
        (raised.ConnectTimeoutError(endpoint_url=URL, error="late"), StorageUnavailable),
        (raised.ReadTimeoutError(endpoint_url=URL, error="late"), StorageUnavailable),
        (raised.ConnectionClosedError(endpoint_url=URL), StorageUnavailable),
        (raised.IncompleteReadError(actual_bytes=1, expected_bytes=2), StorageUnavailable),
        (raised.FlexibleChecksumError(error_msg="crc32 differs"), StorageUnavailable),
        (ProtocolError("cut"), StorageUnavailable),
        (ConnectionResetError(104, "reset"), StorageUnavailable),
        (ResponseParserError("not XML"), StorageUnavailable),
        (raised.NoRegionError(), StorageMisconfigured),
        (raised.ProfileNotFound(profile="x"), StorageMisconfigured),
        (raised.ParamValidationError(report="bad bucket"), StorageMisconfigured),
        (ValueError("Invalid endpoint"), StorageMisconfigured),
        (raised.UnknownServiceError(service_name="s4", known_service_names="s3"), StorageError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.code,
)
def test_each_error_has_its_meaning(error: Exception, kind: type[StorageError]) -> None:
    assert isinstance(error, RAISED)
    told = s3_error(error, "read k from s3://bucket")
    assert type(told) is kind
    assert told.what == "cannot read k from s3://bucket"
    assert told.why
    assert told.hint or kind is StorageError
