"""Manifests and repository.json: round trip, trust, and what a thief of the storage may try with their bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.errors import (
    NotARecipient,
    ObjectDamaged,
    RepositoryError,
    RepositoryTooNew,
    UntrustedSignature,
)
from crmbackup.repository.chunks import PackInfo
from crmbackup.repository.document import FORMAT, Recipient, RepositoryDocument, Signer
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import (
    MAGIC,
    PREFIX_SIZE,
    ManifestHeader,
    decode_body,
    decode_header,
    encode_manifest,
)
from crmbackup.repository.signing import MANIFEST, REPOSITORY, SIGNATURE_SIZE, HostKey, is_signed

OWNER, STRANGER = Identity(b"\1" * 32), Identity(b"\2" * 32)
HOST = HostKey.from_text("03" * 32)
THIEF = HostKey.from_text("04" * 32)
NOW = datetime(2026, 3, 1, 2, 30, 15, 123456, tzinfo=UTC)

HEX16 = st.text("0123456789abcdef", min_size=16, max_size=16)
MOMENTS = st.datetimes(NOW.replace(year=1970, tzinfo=None), timezones=st.just(UTC))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PACKS = st.builds(PackInfo, HEX16.map(lambda text: text * 4), st.integers(0, 2**40))
HEADERS = st.builds(
    ManifestHeader,
    repository_id=HEX16,
    snapshot_id=HEX16,
    policy=st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
    kind=st.sampled_from(["full", "incremental"]),
    parent=st.none() | HEX16,
    generation=HEX16,
    engine=st.just("sqlite"),
    host=TEXT,
    tool=TEXT,
    started=MOMENTS,
    captured=MOMENTS,
    finished=MOMENTS,
    source_size=st.integers(0, 2**50),
    added_size=st.integers(0, 2**50),
    packs=st.lists(PACKS, max_size=20).map(tuple),
    signer=st.just(HOST.public.hex()),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)
BODIES = st.dictionaries(TEXT, JSON, max_size=6)

HEADER = ManifestHeader(
    repository_id="ab" * 16,
    snapshot_id="0011223344556677",
    policy="crm",
    kind="incremental",
    parent="8899aabbccddeeff",
    generation="8899aabbccddeeff",
    engine="sqlite",
    host="crm-host",
    tool="crmbackup test",
    started=NOW,
    captured=NOW + timedelta(seconds=1),
    finished=NOW + timedelta(seconds=2),
    source_size=123456,
    added_size=345,
    packs=(PackInfo("cd" * 32, 345), PackInfo("ef" * 32, 100000)),
    signer=HOST.public.hex(),
)
BODY = {"tables": [["contacts", 3]], "chunks": "x" * 500}
WHOLE = encode_manifest(HEADER, BODY, [OWNER.recipient], HOST)


def reframed(change: Callable[[dict[str, Any]], object], key: HostKey = HOST) -> bytes:
    """WHOLE with another header, signed by `key`."""
    (size,) = struct.unpack_from("<I", WHOLE, len(MAGIC))
    fields: Any = parse_json(WHOLE[PREFIX_SIZE : PREFIX_SIZE + size])
    change(fields)
    return framed(canonical_json(fields), key) + WHOLE[PREFIX_SIZE + size + SIGNATURE_SIZE :]


def framed(head: bytes, key: HostKey = HOST) -> bytes:
    return MAGIC + struct.pack("<I", len(head)) + head + key.sign(MANIFEST + head)


def read(data: bytes, key: str = HEADER.key) -> tuple[ManifestHeader, dict[str, Any]]:
    signed = decode_header(data, key)
    return signed.header, decode_body(data, signed, OWNER)


@settings(deadline=None)
@given(header=HEADERS, body=BODIES)
def test_a_manifest_reads_back(header: ManifestHeader, body: dict[str, object]) -> None:
    data = encode_manifest(header, body, [STRANGER.recipient, OWNER.recipient], HOST)
    signed = decode_header(data, header.key)
    assert (signed.header, signed.object_size) == (header, len(data))
    assert decode_header(data[: signed.sealed_offset], header.key) == signed, "the header needs no body"
    for identity in (OWNER, STRANGER):
        assert decode_body(data, signed, identity) == body
    assert header.stored_size == sum(pack.size for pack in header.packs)


def test_keys_sort_by_time() -> None:
    assert HEADER.key == "snapshots/crm/20260301T023016Z-0011223344556677"
    elsewhere = HEADER.captured.astimezone(tz=None)
    assert replace(HEADER, captured=elsewhere).key == HEADER.key
    assert replace(HEADER, captured=HEADER.captured + timedelta(days=400)).key > HEADER.key


def test_the_body_is_sealed() -> None:
    assert b"contacts" not in WHOLE
    signed = decode_header(WHOLE, HEADER.key)
    with pytest.raises(NotARecipient):
        decode_body(WHOLE, signed, STRANGER)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_a_flip_of_any_byte_is_noticed(mask: int) -> None:
    for place in range(len(WHOLE)):
        flipped = bytearray(WHOLE)
        flipped[place] ^= mask
        newer = place in (6, 7)  # the format number within the magic
        with pytest.raises(RepositoryTooNew if newer else ObjectDamaged):
            read(bytes(flipped))


def test_every_cut_and_every_addition_is_noticed() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(ObjectDamaged):
            read(WHOLE[:size])
    with pytest.raises(ObjectDamaged):
        read(WHOLE + b"\0")


@settings(deadline=None)
@given(data=st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: MAGIC + rest))
def test_any_other_bytes_are_damaged(data: bytes) -> None:
    with pytest.raises(ObjectDamaged):
        read(data)


def test_a_manifest_at_another_key_is_noticed() -> None:
    for key in (HEADER.key.replace("crm/", "erp/"), HEADER.key[:-1] + "0", "snapshots/crm/x"):
        with pytest.raises(ObjectDamaged):
            decode_header(WHOLE, key)


def test_the_body_of_another_snapshot_is_noticed() -> None:
    other = replace(HEADER, snapshot_id="7766554433221100")
    theirs = encode_manifest(other, BODY, [OWNER.recipient], HOST)
    mine, its = decode_header(WHOLE, HEADER.key), decode_header(theirs, other.key)
    swapped = WHOLE[: mine.sealed_offset] + theirs[its.sealed_offset :]
    with pytest.raises(ObjectDamaged):
        decode_body(swapped, mine, OWNER)

    # Even a signer that is trusted cannot give one snapshot the body of another: its id is authenticated.
    def take_its_body(fields: dict[str, Any]) -> None:
        sealed = theirs[its.sealed_offset :]
        fields |= {"sealed_size": len(sealed), "sealed_blake3": blake3.blake3(sealed).hexdigest()}

    header = reframed(take_its_body)[: mine.sealed_offset]
    forged = header + theirs[its.sealed_offset :]
    with pytest.raises(ObjectDamaged):
        read(forged)


def test_a_newer_format_is_told_apart_from_damage() -> None:
    with pytest.raises(RepositoryTooNew):
        read(MAGIC[:6] + b"02" + WHOLE[8:])
    with pytest.raises(RepositoryTooNew):
        read(reframed(lambda fields: fields.update(format=FORMAT + 1, a_new_field=1)))


@pytest.mark.parametrize(
    "head",
    [
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        b'{"format":1}',
        b'{"format":1,"format":1}',
        b'{"format":1,"sealed_size":1e999}',
        b'{"format":1,"sealed_size":Infinity}',
        b'{"format":1,"sealed_size":' + b"9" * 5000 + b"}",
        b"\xff\xfe{\0}\0",
        b"\xed\xa0\x80",
    ],
)
def test_a_hostile_header_is_damaged(head: bytes) -> None:
    with pytest.raises(ObjectDamaged):
        decode_header(framed(head, THIEF), HEADER.key)


@settings(deadline=None)
@given(name=st.sampled_from([*HEADER.__dataclass_fields__, "format", "sealed_size", "sealed_blake3"]), value=JSON)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: object) -> None:
    """Whoever can write to the storage can sign with a key of their own: reading must survive whatever they put."""
    data = reframed(lambda fields: fields.update({name: value}), THIEF)
    with pytest.raises(RepositoryError):
        decode_header(data, HEADER.key)
    data = reframed(lambda fields: fields.update({"signer": THIEF.public.hex(), name: value}), THIEF)
    try:
        decode_header(data, HEADER.key)
    except RepositoryError as error:
        assert error.code in ("object-damaged", "repository-too-new")  # noqa: PT017 - not raising is right, too


# repository.json

SIGNERS = st.builds(Signer, TEXT, st.binary(min_size=32, max_size=32), MOMENTS)
DOCUMENT = RepositoryDocument.new(OWNER, Signer("crm-host", HOST.public, NOW), NOW)
STORED = DOCUMENT.encode(OWNER)


@settings(deadline=None)
@given(
    signers=st.lists(SIGNERS, max_size=4),
    recipients=st.lists(st.builds(Recipient, TEXT, st.binary(min_size=32, max_size=32)), max_size=3),
    sequence=st.integers(0, 2**40),
    created=MOMENTS,
)
def test_a_document_reads_back(
    signers: list[Signer], recipients: list[Recipient], sequence: int, created: datetime
) -> None:
    document = replace(
        DOCUMENT, signers=tuple(signers), recipients=tuple(recipients), sequence=sequence, created=created
    )
    data = document.encode(OWNER)
    assert RepositoryDocument.decode(data, OWNER.owner) == document
    assert RepositoryDocument.decode(data, None) == document
    with pytest.raises(UntrustedSignature):
        RepositoryDocument.decode(data, STRANGER.owner)
    for signer in signers:
        assert document.trusts(signer.public)
    assert not document.trusts(bytes(31))


def test_joining_gives_the_next_version() -> None:
    joined = DOCUMENT.with_signer(Signer("web", THIEF.public, NOW))
    assert (joined.sequence, joined.trusts(THIEF.public), joined.trusts(HOST.public)) == (2, True, True)
    assert not DOCUMENT.trusts(THIEF.public)
    assert joined.signer_name(THIEF.public) == "web"
    assert "unknown" in DOCUMENT.signer_name(THIEF.public)


@pytest.mark.parametrize("owner", [OWNER.owner, None], ids=["known owner", "unknown owner"])
@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_a_flip_of_any_byte_of_the_document_is_noticed(owner: bytes | None, mask: int) -> None:
    for place in range(len(STORED)):
        flipped = bytearray(STORED)
        flipped[place] ^= mask
        with pytest.raises((ObjectDamaged, UntrustedSignature, RepositoryTooNew)):
            RepositoryDocument.decode(bytes(flipped), owner)


def test_every_cut_of_the_document_is_noticed() -> None:
    for size in range(len(STORED)):
        with pytest.raises(ObjectDamaged):
            RepositoryDocument.decode(STORED[:size], OWNER.owner)
    for more in (b"\n", b" ", b"\0", STORED):
        with pytest.raises(ObjectDamaged):
            RepositoryDocument.decode(STORED + more, OWNER.owner)


def test_a_thief_can_add_neither_recipient_nor_host() -> None:
    for change in (
        {"recipients": (*DOCUMENT.recipients, Recipient("owner", STRANGER.recipient))},
        {"signers": (*DOCUMENT.signers, Signer("crm-host", THIEF.public, NOW))},
        {"sequence": 7},
    ):
        forged = replace(DOCUMENT, **change)  # type: ignore[arg-type]
        with pytest.raises(UntrustedSignature):  # signed by the thief, in the owner's name
            RepositoryDocument.decode(forged.encode(STRANGER), OWNER.owner)
        own = replace(forged, owner=STRANGER.owner).encode(STRANGER)
        with pytest.raises(UntrustedSignature):  # and in their own
            RepositoryDocument.decode(own, OWNER.owner)
        assert RepositoryDocument.decode(own, None).owner == STRANGER.owner


def test_a_newer_document_is_told_apart_from_damage() -> None:
    body: Any = parse_json(STORED)
    del body["signature"]
    body["format"] = FORMAT + 1
    signature = OWNER.owner_key.sign(REPOSITORY + canonical_json(body)).hex()
    with pytest.raises(RepositoryTooNew):
        RepositoryDocument.decode(canonical_json({**body, "signature": signature}) + b"\n", OWNER.owner)


@settings(deadline=None)
@given(name=st.sampled_from(sorted(parse_json(STORED))), value=JSON)  # type: ignore[call-overload]
def test_any_value_in_any_field_of_the_document_is_refused(name: str, value: object) -> None:
    body: Any = parse_json(STORED)
    data = canonical_json(body | {name: value}) + b"\n"
    if data == STORED:
        return
    for owner in (OWNER.owner, None):
        with pytest.raises((ObjectDamaged, UntrustedSignature, RepositoryTooNew)):
            RepositoryDocument.decode(data, owner)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"format":1e999}', b'{"format":1,"sequence":Infinity}', b"\xff", b'{"format":1}', b"1"]
)
def test_a_hostile_document_is_damaged(data: bytes) -> None:
    with pytest.raises(ObjectDamaged):
        RepositoryDocument.decode(data, OWNER.owner)


# Signatures


@settings(deadline=None)
@given(message=st.binary(max_size=50), place=st.integers(0, 63), mask=st.integers(1, 255))
def test_signatures_fit_one_message_and_one_key(message: bytes, place: int, mask: int) -> None:
    signature = HOST.sign(MANIFEST + message)
    assert is_signed(MANIFEST + message, signature, HOST.public)
    assert not is_signed(REPOSITORY + message, signature, HOST.public)
    assert not is_signed(MANIFEST + message + b"\0", signature, HOST.public)
    assert not is_signed(MANIFEST + message, signature, THIEF.public)
    flipped = bytearray(signature)
    flipped[place] ^= mask
    assert not is_signed(MANIFEST + message, bytes(flipped), HOST.public)
    assert not is_signed(MANIFEST + message, signature[:-1], HOST.public)


def test_a_host_key_file_reads_back() -> None:
    assert HostKey.from_text(HOST.to_text()).public == HOST.public
    assert HostKey.generate().public != HostKey.generate().public
