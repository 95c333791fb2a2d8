"""Where a policy keeps its snapshots, and how the storage is spoken to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from crmbackup.core.errors import StorageMisconfigured
from crmbackup.policy.fields import Line, PositiveDuration, SecretReference, Section, fail
from crmbackup.storage.address import Address, LocalAddress, S3Address, parse_address

#: Keys that say where and how objects are kept in S3; each may stand in the query of the url instead.
OPTIONS = (
    "endpoint",
    "region",
    "path_style",
    "storage_class",
    "sse",
    "sse_kms_key_id",
    "checksums",
    "connect_timeout",
    "read_timeout",
)
CREDENTIALS = ("access_key_id", "secret_access_key", "session_token")


def _schema_of_local(schema: dict[str, Any]) -> None:
    schema["if"] = {"properties": {"url": {"pattern": "^(/|file:)"}}, "required": ["url"]}
    schema["then"] = {"properties": dict.fromkeys((*OPTIONS, *CREDENTIALS), False)}
    schema["dependentRequired"] = {
        "access_key_id": ["secret_access_key"],
        "secret_access_key": ["access_key_id"],
        "session_token": ["access_key_id"],
    }


class Repository(Section):
    """The place where snapshots are kept, and the secrets that open it."""

    model_config = ConfigDict(json_schema_extra=_schema_of_local)

    url: Line = Field(description='"/path", "file:///path" or "s3://bucket/prefix".', examples=["s3://backups/crm"])
    endpoint: Line | None = Field(
        default=None, description="The address of an S3 server that is not AWS.", examples=["https://s3.example.org"]
    )
    region: Line | None = Field(default=None, description="The region of the bucket.", examples=["eu-central-1"])
    path_style: bool | None = Field(
        default=None,
        description="Put the bucket into the path instead of the host name. Default: yes with an endpoint, no without.",
    )
    storage_class: Line | None = Field(
        default=None, description="The S3 storage class of packs.", examples=["STANDARD_IA"]
    )
    sse: Literal["AES256", "aws:kms"] | None = Field(
        default=None, description="Encryption by the storage, on top of crmbackup's own."
    )
    sse_kms_key_id: Line | None = Field(default=None, description="The KMS key for sse: aws:kms.")
    checksums: Literal["when_required", "when_supported"] | None = Field(
        default=None,
        description="When the S3 client adds checksums of its own, which some servers refuse. Default: when_required.",
    )
    connect_timeout: PositiveDuration | None = Field(
        default=None, description="How long to wait for a connection to the storage. Default: 10s."
    )
    read_timeout: PositiveDuration | None = Field(
        default=None, description="How long to wait for each part of an answer of the storage. Default: 1m."
    )
    retries: int = Field(
        default=5, ge=1, le=100, description="How often a request is tried before the run fails, the first included."
    )
    access_key_id: SecretReference | None = Field(
        default=None,
        description="The S3 access key. Without it the usual places are searched (role of the machine, profile).",
    )
    secret_access_key: SecretReference | None = Field(default=None, description="The S3 secret key.")
    session_token: SecretReference | None = Field(default=None, description="The token of temporary S3 credentials.")
    identity: SecretReference | None = Field(
        default=None,
        description="The offline identity that opens snapshots. Backups do not need it; restores and drills do. "
        "It goes before the passphrase.",
    )
    passphrase: SecretReference | None = Field(
        default=None, description="The passphrase that opens the wrapped identity kept in the repository."
    )

    def address(self) -> Address:
        """The url and the keys beside it as one address. Holds no secret."""
        return _combined(self.url, {key: getattr(self, key) for key in OPTIONS})

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        _combined(url, {})
        return url

    @field_validator(*OPTIONS, *CREDENTIALS)
    @classmethod
    def _fits_the_url(cls, value: object, info: ValidationInfo) -> object:
        url = info.data.get("url")
        if url is None:  # its own problem is told already
            return value
        if isinstance(parse_address(url), LocalAddress):
            fail("is only for s3:// repositories")
        if info.field_name in _options_in(url):
            fail("is given twice: here and in the url")
        if info.field_name in OPTIONS:
            _combined(url, {"sse": info.data.get("sse"), info.field_name: value})
        return value

    @model_validator(mode="after")
    def _keys_that_belong_together(self) -> Repository:
        if self.access_key_id is None and self.secret_access_key is not None:
            fail("needs access_key_id beside it", key="secret_access_key")
        if self.access_key_id is not None and self.secret_access_key is None:
            fail("needs secret_access_key beside it", key="access_key_id")
        if self.session_token is not None and self.access_key_id is None:
            fail("needs access_key_id and secret_access_key beside it", key="session_token")
        return self


def _options_in(url: str) -> set[str]:
    """The names of the options behind the url's question mark."""
    return {part.partition("=")[0] for part in url.partition("?")[2].split("&")}


def _combined(url: str, options: dict[str, Any]) -> Address:
    """The address of a url and options, of which those that are None do not count. Fails as a value does."""
    given: dict[str, Any] = {
        key: value.total_seconds() if isinstance(value, timedelta) else value
        for key, value in options.items()
        if value is not None
    }
    try:
        address = parse_address(url)
        return replace(address, **given) if isinstance(address, S3Address) else address
    except StorageMisconfigured as error:
        fail(f"is not valid: {error}; {error.hint}" if error.hint else f"is not valid: {error}")
