"""botocore's own errors in our terms; what servers answer is told in tests/faults/test_storage_s3.py."""

from __future__ import annotations

import botocore.exceptions as raised
import pytest
from botocore.parsers import ResponseParserError
from urllib3.exceptions import ProtocolError

from crmbackup.core.errors import Interrupted, StorageDenied, StorageError, StorageMisconfigured, StorageUnavailable
from crmbackup.storage.s3_errors import RAISED, s3_error, stopped

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


def _as_botocore_does(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as caught:  # noqa: BLE001
            raise raised.HTTPClientError(error=caught)  # noqa: B904 - as it does
    except raised.HTTPClientError as wrapped:
        return wrapped


def test_a_stop_within_a_request_is_no_broken_connection() -> None:
    """Else Ctrl-C would be an error of the network, worth another try."""
    stop = Interrupted("stopped by Ctrl-C")
    assert stopped(_as_botocore_does(stop), None) is stop
    assert stopped(_as_botocore_does(ConnectionResetError()), None) is None
    # What fails while we clean up after a stop is an error of its own.
    again = Interrupted("stopped again")
    later: list[Exception] = []
    try:
        raise stop
    except Interrupted:
        later += [_as_botocore_does(ConnectionResetError()), _as_botocore_does(again)]
    assert stopped(later[0], None) is stop  # it is in what Python remembers
    assert [stopped(each, stop) for each in later] == [None, again]
