"""What botocore's errors mean in our terms."""

from __future__ import annotations

from typing import Any, Final

import botocore.exceptions as raised
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from crmbackup.core.errors import (
    Interrupted,
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
)

_FULL: Final = {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"}
_DENIED: Final = {
    "AccessDenied": "check the policy of these credentials and of the bucket",
    "AllAccessDisabled": "ask the provider why the bucket is disabled",
    "AccountProblem": "ask the provider what is wrong with the account",
    "ExpiredToken": "get new temporary credentials",
    "InvalidAccessKeyId": "check the access key id, and that it belongs to this provider",
    "InvalidToken": "get new temporary credentials",
    "RequestTimeTooSkewed": "set this machine's clock",
    "SignatureDoesNotMatch": "check the secret access key and the region",
}
_MISCONFIGURED: Final = {
    "NoSuchBucket": "create the bucket, or correct its name or the endpoint",
    "InvalidBucketName": "correct the bucket's name",
    "AuthorizationHeaderMalformed": "set region in the address to the bucket's",
    "IllegalLocationConstraintException": "set region in the address to the bucket's",
    "PermanentRedirect": "set region in the address to the bucket's",
    "TemporaryRedirect": "set region in the address to the bucket's",
    "InvalidObjectState": "the object is archived: have the provider restore it, or use another storage class",
    "InvalidStorageClass": "correct storage_class in the address",
    "KMS.DisabledException": "enable the key of sse_kms_key_id",
    "KMS.NotFoundException": "correct sse_kms_key_id in the address",
    "NotImplemented": "the server lacks this function: try without storage_class, sse, checksums and conditional_put",
    "XNotImplemented": "the server lacks this function: try without storage_class, sse, checksums and conditional_put",
}
_UNAVAILABLE: Final = {
    "BadDigest",  # the bytes were damaged on their way
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "InvalidRange",  # the object is shorter than its size in a manifest or listing: perhaps a short answer
    "NoSuchUpload",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}

_NO_CREDENTIALS = (
    raised.NoCredentialsError,
    raised.PartialCredentialsError,
    raised.CredentialRetrievalError,
    raised.NoAuthTokenError,
    raised.TokenRetrievalError,
    raised.SSOError,
    raised.MetadataRetrievalError,
)
_BAD_ADDRESS = (
    raised.InvalidRegionError,
    raised.NoRegionError,
    raised.ParamValidationError,
    raised.ProfileNotFound,
    raised.ConfigParseError,
    raised.BaseEndpointResolverError,
    raised.EndpointProviderError,
    raised.ProxyConnectionError,
    raised.InvalidProxiesConfigError,
    ValueError,
)
_BROKEN = (
    raised.HTTPClientError,
    raised.ConnectionError,
    raised.IncompleteReadError,
    raised.FlexibleChecksumError,
    raised.ResponseStreamingError,
    HTTPError,
    OSError,
)

#: What the calls of one S3 request can raise, apart from mistakes of our own.
RAISED: Final = (raised.ClientError, raised.BotoCoreError, ResponseParserError, HTTPError, OSError, ValueError)


def stopped(error: Exception, handled: BaseException | None) -> Interrupted | None:
    """A signal that stopped the request: botocore takes what its handler raises for a broken connection.

    handled: what was being handled before the request began, a stop of then included; it is no part of this request.
    """
    found: BaseException | None = error
    while found is not None and found is not handled:
        if isinstance(found, Interrupted):
            return found
        found = found.__cause__ or found.__context__
    return None


def s3_error(error: Exception, doing: str, *, of_object: bool = False) -> StorageError:
    """The error of ours for one that botocore raised. `doing` is like "read packs/x from s3://bucket".

    `of_object`: a plain "not found" means the object; otherwise it means bucket or server.
    """
    what = f"cannot {doing}"
    if isinstance(error, raised.ClientError):
        return _of_answer(error.response, what, of_object=of_object)
    why = str(error)
    if isinstance(error, raised.SSLError) and "CERTIFICATE_VERIFY_FAILED" in why:
        return StorageMisconfigured(
            what, why=why, hint="the server's certificate is not trusted: add its authority to this machine's"
        )
    if isinstance(error, _NO_CREDENTIALS):
        return StorageDenied(what, why=why, hint="give credentials in the policy, or in boto3's own places")
    if isinstance(error, _BAD_ADDRESS):
        return StorageMisconfigured(what, why=why, hint="check the address of the storage")
    if isinstance(error, _BROKEN):
        return StorageUnavailable(what, why=why, hint="check the network and the endpoint")
    if isinstance(error, ResponseParserError):
        return StorageUnavailable(what, why="the answer is not S3's", hint="check the endpoint and proxies before it")
    return StorageError(what, why=why)


def _of_answer(response: Any, what: str, *, of_object: bool) -> StorageError:
    """The error for an answer with an HTTP status and, mostly, S3's own code."""
    code = str(response.get("Error", {}).get("Code", ""))
    text = str(response.get("Error", {}).get("Message", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    why = " ".join(part for part in (code, text and f"({text})", status and f"HTTP {status}") if part)
    if code in _FULL or status == 507:
        return StorageFull(what, why=why, hint="free some space, raise the quota or run prune")
    if code in _DENIED:
        return StorageDenied(what, why=why, hint=_DENIED[code])
    if code in _MISCONFIGURED:
        return StorageMisconfigured(what, why=why, hint=_MISCONFIGURED[code])
    if code in _UNAVAILABLE:
        return StorageUnavailable(what, why=why)
    return _of_status(status, what, why, of_object=of_object)


def _of_status(status: int, what: str, why: str, *, of_object: bool) -> StorageError:
    """The error for an answer whose code we do not know; a HEAD request's answer has none."""
    if status == 404 and of_object:
        return ObjectNotFound(what, why=why)
    if status == 404:
        return StorageMisconfigured(what, why=why, hint=_MISCONFIGURED["NoSuchBucket"])
    if status == 412:
        return ObjectExists(what, why=why)
    if status in (401, 403):
        return StorageDenied(what, why=why, hint=_DENIED["AccessDenied"])
    if status in (301, 302, 307, 308):
        return StorageMisconfigured(what, why=why, hint=_MISCONFIGURED["PermanentRedirect"])
    if status == 501:
        return StorageMisconfigured(what, why=why, hint=_MISCONFIGURED["NotImplemented"])
    if status in (408, 409, 416, 425, 429) or status >= 500:
        return StorageUnavailable(what, why=why)
    return StorageError(what, why=why)
