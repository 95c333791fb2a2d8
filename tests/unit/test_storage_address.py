"""Addresses of storages as text."""

from __future__ import annotations

import pickle
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import StorageMisconfigured
from crmbackup.core.secrets import Secret
from crmbackup.storage.address import Credentials, LocalAddress, S3Address, format_address, parse_address

_segment = st.text("abcXYZ019._-", min_size=1, max_size=6).filter(lambda text: text not in (".", ".."))
_host = st.sampled_from(["127.0.0.1:8333", "localhost:9000", "[::1]:9000", "s3.example.net", "minio:1/base"])
_seconds = st.floats(min_value=0.001, max_value=1e6, allow_nan=False)
_kms = st.none() | st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
_s3 = st.builds(
    lambda kms, **rest: S3Address(**rest, sse="aws:kms" if kms else None, sse_kms_key_id=kms),
    kms=_kms,
    bucket=st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}[a-z0-9]", fullmatch=True),
    prefix=st.lists(_segment, max_size=3).map("/".join),
    endpoint=st.none()
    | st.builds(lambda scheme, host: f"{scheme}://{host}", st.sampled_from(["http", "https"]), _host),
    region=st.none() | st.sampled_from(["us-east-1", "eu-central-1", "auto"]),
    path_style=st.sampled_from([None, True, False]),
    storage_class=st.none() | st.sampled_from(["STANDARD_IA", "GLACIER_IR"]),
    checksums=st.sampled_from(["when_required", "when_supported"]),
    connect_timeout=_seconds,
    read_timeout=_seconds,
)
_printable = st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" ")
_local = st.text(_printable, max_size=30).map(lambda text: LocalAddress(Path("/" + text)))


@given(_s3 | _local)
def test_parsing_undoes_formatting(address: LocalAddress | S3Address) -> None:
    text = format_address(address)
    assert parse_address(text) == address
    assert format_address(parse_address(text)) == text
    assert text.isprintable()


@given(_s3)
def test_each_option_is_told_on_the_sheet_unless_default(address: S3Address) -> None:
    text = format_address(address)
    for field in fields(address):
        if field.name not in ("bucket", "prefix"):
            assert (f"{field.name}=" in text) == (getattr(address, field.name) != field.default)


@given(st.text(max_size=60) | st.text("s3:/?&=@%.ab", max_size=30).map(lambda text: "s3://" + text))
def test_any_text_is_an_address_or_a_named_error(text: str) -> None:
    try:
        address = parse_address(text)
    except StorageMisconfigured:
        return
    assert parse_address(format_address(address)) == address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("/srv/backups", LocalAddress(Path("/srv/backups"))),
        ("/srv/a b?c=d@e", LocalAddress(Path("/srv/a b?c=d@e"))),
        ("file:///srv/a%20b", LocalAddress(Path("/srv/a b"))),
        ("file://localhost/srv", LocalAddress(Path("/srv"))),
        ("s3://bucket", S3Address("bucket")),
        ("S3://bucket/", S3Address("bucket")),
        ("s3://bucket/a/b/", S3Address("bucket", "a/b")),
        (
            "s3://bucket/crm?endpoint=http://127.0.0.1:8333/&region=us-east-1&path_style=True&read_timeout=5",
            S3Address(
                "bucket",
                "crm",
                endpoint="http://127.0.0.1:8333",
                region="us-east-1",
                path_style=True,
                read_timeout=5,
            ),
        ),
        (
            "s3://bucket?sse=aws:kms&sse_kms_key_id=arn:aws:kms:eu-central-1:1:key/2",
            S3Address("bucket", sse="aws:kms", sse_kms_key_id="arn:aws:kms:eu-central-1:1:key/2"),
        ),
    ],
)
def test_what_people_write(text: str, address: LocalAddress | S3Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not the address"),
        ("srv/backups", "not the address"),
        ("ftp://host/x", "not the address"),
        ("https://minio.example.net/bucket", "endpoint="),
        ("file://host/srv", "another machine"),
        ("file:///a%ff", "UTF-8"),
        ("s3://", "bucket"),
        ("s3:///prefix", "bucket"),
        ("s3://b/x", "bucket"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket/a/../b", "prefix"),
        ("s3://bucket?endpont=http://h", "did you mean endpoint?"),
        ("s3://bucket?pathstyle=true", "did you mean path_style?"),
        ("s3://bucket?zzz=1", "known are endpoint"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?region=", "region"),
        ("s3://bucket?path_style=yes", "true or false"),
        ("s3://bucket?read_timeout=soon", "seconds"),
        ("s3://bucket?read_timeout=0", "above zero"),
        ("s3://bucket?connect_timeout=nan", "above zero"),
        ("s3://bucket?connect_timeout=inf", "above zero"),
        ("s3://bucket?sse=rot13", "AES256"),
        ("s3://bucket?checksums=never", "when_required"),
        ("s3://bucket?sse_kms_key_id=k", "sse=aws:kms"),
        ("s3://bucket?endpoint=127.0.0.1:8333", "https://host:port"),
        ("s3://bucket?endpoint=http://h:port", "https://host:port"),
        ("s3://bucket?endpoint=http://", "https://host:port"),
        ("s3://bucket?endpoint=http://h?x=y", "https://host:port"),
        ("s3://bucket?", None),
    ],
)
def test_mistakes_are_named(text: str, said: str | None) -> None:
    if said is None:
        assert parse_address(text) == S3Address("bucket")
        return
    with pytest.raises(StorageMisconfigured) as caught:
        parse_address(text)
    assert said in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKIAX:hunter2@bucket/prefix",
        "s3://bucket?endpoint=https://AKIAX:hunter2@host",
        "s3://bucket?secret_access_key=hunter2",
        "s3://bucket?session_token=hunter2",
        "s3://bucket?AWS_SECRET=hunter2",
        "s3://bucket?hunter2:secret@x=1",
        "https://user:hunter2@host/bucket",
        "user:hunter2@host",
        "s3://bucket?region=user:hunter2@host",
    ],
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(StorageMisconfigured) as caught:
        parse_address(text)
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


def test_paths_must_be_absolute_and_printable() -> None:
    for path in ("relative", "/a\nb", "/a\udcff"):
        with pytest.raises(StorageMisconfigured):
            LocalAddress(Path(path))


def test_path_style_follows_the_endpoint_unless_told() -> None:
    assert not S3Address("bucket").uses_path_style
    assert S3Address("bucket", endpoint="https://minio.example.net").uses_path_style
    assert not S3Address("bucket", endpoint="https://oss.example.net", path_style=False).uses_path_style
    assert S3Address("bucket", path_style=True).uses_path_style


def test_credentials_reach_workers_and_do_not_print() -> None:
    credentials = Credentials(Secret("AKIAX"), Secret("hunter2"), Secret("token"))
    assert pickle.loads(pickle.dumps(credentials)) == credentials
    assert "hunter2" not in repr(credentials)
    assert "AKIAX" not in repr(credentials)
