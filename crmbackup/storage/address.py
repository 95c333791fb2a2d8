"""Where a storage is: one line of text that is enough to reopen it, apart from credentials.

    /srv/backups
    file:///srv/backups
    s3://bucket/prefix?region=eu-central-1
    s3://bucket/prefix?endpoint=https://minio.example.net:9000&storage_class=STANDARD_IA

`parse_address` and `format_address` are exact inverses for every valid address. The text is printed on recovery
sheets and in logs, so an address never holds a secret and a text that seems to hold one is refused unseen.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import quote, unquote, urlsplit

from crmbackup.core.errors import StorageMisconfigured, UsageError
from crmbackup.core.secrets import Secret
from crmbackup.storage.base import check_key

Sse = Literal["AES256", "aws:kms"]
Checksums = Literal["when_required", "when_supported"]

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
_STORAGE_CLASS = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SECRET_KEYS = ("access", "secret", "token", "password", "passwd", "credential", "user")
_EXAMPLE = 'write "/path", "file:///path" or "s3://bucket/prefix?endpoint=https://host:port"'


@dataclass(frozen=True)
class Credentials:
    """Keys to an object storage. `session_token` belongs to temporary ones."""

    access_key_id: Secret
    secret_access_key: Secret
    session_token: Secret | None = None


@dataclass(frozen=True)
class LocalAddress:
    """A directory. Raises StorageMisconfigured unless the path is absolute and can be printed."""

    path: Path

    def __post_init__(self) -> None:
        text = str(self.path)
        if not self.path.is_absolute():
            raise StorageMisconfigured(f"{text!r} is not an absolute path", hint="write the path from / on")
        if not text.isprintable():
            raise StorageMisconfigured(f"{text!r} cannot be printed", hint="use a path of printable characters")


@dataclass(frozen=True)
class S3Address:
    """A bucket, or the part of one under `prefix`.

    Attributes:
        bucket: the bucket's name.
        prefix: key segments joined by "/"; slashes at either end are dropped.
        endpoint: http(s) URL of a server other than AWS's; a slash at its end is dropped.
        region: None lets boto3 choose for AWS, and means us-east-1 (which most servers take) with an endpoint.
        path_style: bucket in the path instead of in the host name. None: in the path when there is an endpoint, since
            a server of one's own rarely has a name per bucket.
        storage_class: as the server names it, such as STANDARD_IA.
        sse: encryption by the server: "AES256" or "aws:kms".
        sse_kms_key_id: the key for "aws:kms"; None is the bucket's own.
        checksums: "when_required" works with every server; "when_supported" adds boto3's CRC to all transfers.
        connect_timeout: seconds.
        read_timeout: seconds without any byte of the answer.

    Raises StorageMisconfigured for values that can never work.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool | None = None
    storage_class: str | None = None
    sse: Sse | None = None
    sse_kms_key_id: str | None = None
    checksums: Checksums = "when_required"
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise StorageMisconfigured(f"{self.bucket!r} is not a name of a bucket", hint=_EXAMPLE)
        object.__setattr__(self, "prefix", self.prefix.strip("/"))
        if self.prefix:
            try:
                check_key(self.prefix)
            except UsageError as error:
                raise StorageMisconfigured(
                    f"{self.prefix!r} is not a valid prefix",
                    why="segments consist of letters, digits, dot, underscore and hyphen",
                    hint="put options behind a question mark, as in s3://bucket/prefix?region=eu-central-1",
                ) from error
        if self.endpoint is not None:
            object.__setattr__(self, "endpoint", _checked_endpoint(self.endpoint))
        _check_pattern("region", self.region, _REGION)
        _check_pattern("storage_class", self.storage_class, _STORAGE_CLASS)
        _check_choice("sse", self.sse, (None, *get_args(Sse)))
        _check_choice("checksums", self.checksums, get_args(Checksums))
        if self.sse_kms_key_id is not None:
            if self.sse != "aws:kms":
                raise StorageMisconfigured("sse_kms_key_id is given without sse=aws:kms")
            if not self.sse_kms_key_id or not self.sse_kms_key_id.isprintable():
                raise StorageMisconfigured("sse_kms_key_id is empty or cannot be printed")
        for name in ("connect_timeout", "read_timeout"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise StorageMisconfigured(f"{name} is {value}", why="it is a time in seconds, above zero")
            object.__setattr__(self, name, float(value))

    @property
    def uses_path_style(self) -> bool:
        """What path_style comes to."""
        return self.endpoint is not None if self.path_style is None else self.path_style


Address = LocalAddress | S3Address

_OPTIONS: Final = tuple(field.name for field in fields(S3Address) if field.name not in ("bucket", "prefix"))


def parse_address(text: str) -> Address:
    """The address that a text means. Raises StorageMisconfigured, without the text where it may hold a secret."""
    if text.startswith("/"):
        return LocalAddress(Path(text))
    scheme, separator, rest = text.partition("://")
    if separator and scheme.lower() == "file":
        return _parse_file(rest)
    if separator and scheme.lower() == "s3":
        return _parse_s3(rest)
    if separator and scheme.lower() in ("http", "https"):
        raise StorageMisconfigured(
            "a web address alone does not name a storage",
            hint="for a server of your own: s3://bucket/prefix?endpoint=https://host:port",
        )
    raise StorageMisconfigured("this is not the address of a storage", why=_shown(text), hint=_EXAMPLE)


def format_address(address: Address) -> str:
    """The text that `parse_address` turns into an equal address. Options at their defaults are left out."""
    if isinstance(address, LocalAddress):
        return str(address.path)
    options = []
    for field in fields(S3Address):
        value = getattr(address, field.name)
        if field.name in _OPTIONS and value != field.default:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            options.append(f"{field.name}={quote(text, safe='/:')}")
    path = f"/{address.prefix}" if address.prefix else ""
    query = f"?{'&'.join(options)}" if options else ""
    return f"s3://{address.bucket}{path}{query}"


def _parse_file(rest: str) -> LocalAddress:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise StorageMisconfigured(
            "a file address cannot name another machine", hint="three slashes, as in file:///srv/backups"
        )
    return LocalAddress(Path("/" + _unquoted(path)))


def _parse_s3(rest: str) -> S3Address:
    place, _, query = rest.partition("?")
    if "@" in place:
        raise _holds_secret("a user or password")
    bucket, _, prefix = place.partition("/")
    given: dict[str, object] = {}
    for part in query.split("&") if query else []:
        name, _, value = part.partition("=")
        if name not in _OPTIONS:
            raise _unknown_option(name)
        if name in given:
            raise StorageMisconfigured(f"the option {name} is given twice in the storage address")
        given[name] = _option(name, _unquoted(value))
    # Types are proved by S3Address itself, at run time.
    return S3Address(bucket=bucket, prefix=prefix, **given)  # type: ignore[arg-type]


def _option(name: str, text: str) -> object:
    if name == "path_style":
        if text.lower() not in ("true", "false"):
            raise StorageMisconfigured(f"path_style is {_shown(text)}", why="it is true or false")
        return text.lower() == "true"
    if name in ("connect_timeout", "read_timeout"):
        try:
            return float(text)
        except ValueError as error:
            raise StorageMisconfigured(f"{name} is {_shown(text)}", why="it is a time in seconds") from error
    return text


def _unquoted(text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise StorageMisconfigured("a percent sign in the storage address starts no UTF-8 character") from error


def _unknown_option(name: str) -> StorageMisconfigured:
    if any(word in name.lower() for word in _SECRET_KEYS):
        return _holds_secret(f"the option {name}" if name.replace("_", "").isalnum() else "a secret")
    close = difflib.get_close_matches(name, _OPTIONS, n=1)
    return StorageMisconfigured(
        f"the storage address has an unknown option {_shown(name)}",
        hint=f"did you mean {close[0]}?" if close else f"known are {', '.join(_OPTIONS)}",
    )


def _holds_secret(what: str) -> StorageMisconfigured:
    return StorageMisconfigured(
        f"the storage address holds {what}",
        why="addresses are printed on recovery sheets and in logs",
        hint="give credentials apart from the address",
    )


def _checked_endpoint(text: str) -> str:
    if "@" in text:
        raise _holds_secret("a user or password in its endpoint")
    example = "write it like https://host:port"
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError as error:
        raise StorageMisconfigured("the endpoint is not a URL", why=str(error), hint=example) from error
    plain = text.isascii() and text.isprintable() and not set(text) & set(" ?#")
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
        raise StorageMisconfigured(f"{_shown(text)} is not the URL of a server", hint=example)
    return text.rstrip("/")


def _check_pattern(name: str, value: str | None, pattern: re.Pattern[str]) -> None:
    if value is not None and not pattern.fullmatch(value):
        raise StorageMisconfigured(f"{name} is {_shown(value)}", why="that cannot be one")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise StorageMisconfigured(f"{name} is {_shown(str(value))}", why=f"known are {known}")


def _shown(text: str) -> str:
    """The text for a message, unless it may hold a password."""
    return "(not shown, it may hold a secret)" if "@" in text else repr(text)
