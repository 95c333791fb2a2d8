"""Packs and chunk tables: what goes in comes out, and nothing else does."""

from __future__ import annotations

import os
import pickle
import random
from base64 import b64decode
from contextlib import suppress
from dataclasses import replace

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import NotARecipient, ObjectDamaged
from crmbackup.repository.chunks import (
    ChunkIndex,
    ChunkRef,
    ChunkTable,
    PackInfo,
    chunk_id,
    decode_chunks,
    encode_chunks,
    pack_key,
)
from crmbackup.repository.identity import Identity
from crmbackup.repository.pack import OpenPack, PackBuilder, check_pack_bytes
from crmbackup.repository.sealing import STANZA_SIZE

MIB = 1024 * 1024
OWNER, COLLEAGUE, STRANGER = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
CHUNK_KEY = b"k" * 32
CONTENTS = st.binary(max_size=300) | st.integers(0, 5000).map(bytes) | st.integers(1, 2000).map(os.urandom)


def build(contents: list[bytes], level: int = 3) -> tuple[PackInfo, bytes, list[ChunkRef]]:
    builder = PackBuilder([OWNER.recipient, COLLEAGUE.recipient], level)
    for content in contents:
        builder.add(chunk_id(content, CHUNK_KEY), content)
    assert len(builder) == len(contents)
    return builder.finish()


def named(data: bytes) -> PackInfo:
    """As a writer would name these bytes: so that what is behind the name is tested."""
    return PackInfo(blake3.blake3(data).hexdigest(), len(data))


def read_all(info: PackInfo, data: bytes, chunks: list[ChunkRef]) -> list[bytes]:
    pack = OpenPack(info, data, OWNER.opening_key)
    assert pack.chunks() == [replace(chunk, pack_id=info.pack_id) for chunk in chunks]
    return [pack.read_verified(chunk, CHUNK_KEY) for chunk in chunks]


@settings(deadline=None)
@given(contents=st.lists(CONTENTS, max_size=12), level=st.sampled_from([1, 3, 19]))
def test_what_goes_in_comes_out(contents: list[bytes], level: int) -> None:
    info, data, chunks = build(contents, level)
    assert info == named(data)
    assert pack_key(info.pack_id) == f"packs/{info.pack_id[:2]}/{info.pack_id}"
    assert [chunk.raw for chunk in chunks] == [len(content) for content in contents]
    assert [chunk.frame for chunk in chunks] == list(range(len(contents)))
    check_pack_bytes(info, data)
    for identity in (OWNER, COLLEAGUE):
        pack = OpenPack(info, data, identity.opening_key)
        assert pack.chunks() == chunks, "the footer says the same as the writer"
        assert [pack.read_verified(chunk, CHUNK_KEY) for chunk in chunks] == contents
    with pytest.raises(NotARecipient):
        OpenPack(info, data, STRANGER.opening_key)


def test_large_chunks_and_kinds_of_buffers() -> None:
    contents = [bytes(MIB), os.urandom(MIB), b"", b"x"]
    builder = PackBuilder([OWNER.recipient], 3)
    for content, kind in zip(contents, (bytes, bytearray, bytes, memoryview), strict=True):
        builder.add(chunk_id(content, CHUNK_KEY), kind(content))
    info, data, chunks = builder.finish()
    assert read_all(info, data, chunks) == contents
    assert chunks[0].stored < 200, "compressible bytes are compressed"
    assert chunks[1].stored < MIB + 100, "bytes that do not compress hardly grow"


def test_no_content_shows_in_a_pack() -> None:
    content = b"Jane Doe, jane@example.org " * 20
    _, data, chunks = build([content])
    assert b"jane" not in data.lower()
    assert chunks[0].chunk_id not in data
    assert build([content])[1] != data, "the same content is never sealed to the same bytes"


def test_the_name_of_a_chunk_is_of_use_only_with_the_key() -> None:
    assert chunk_id(b"x", CHUNK_KEY) != chunk_id(b"x", b"l" * 32)
    assert chunk_id(b"x", CHUNK_KEY) == blake3.blake3(b"x", key=CHUNK_KEY).digest()


CONTENT = [b"first chunk " * 50, b"", os.urandom(700), bytes(5000)]


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_a_flip_of_any_byte_is_found_by_the_name(mask: int) -> None:
    info, data, _ = build(CONTENT)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= mask
        with pytest.raises(ObjectDamaged):
            check_pack_bytes(info, bytes(flipped))


def test_a_flip_of_any_byte_is_found_behind_the_name_too() -> None:
    """Frames and footer are authenticated for themselves. The count of stanzas is covered by the name alone."""
    _, data, chunks = build(CONTENT)
    count = range(8, 10)
    other_stanza = range(10 + STANZA_SIZE, 10 + 2 * STANZA_SIZE)
    for place in range(len(data)):
        if place in count or place in other_stanza:
            continue
        flipped = bytearray(data)
        flipped[place] ^= 0x04
        with pytest.raises((ObjectDamaged, NotARecipient)):
            read_all(named(bytes(flipped)), bytes(flipped), chunks)


@settings(deadline=None)
@given(cut=st.integers(0, 4000), more=st.binary(max_size=3))
def test_another_length_is_noticed(cut: int, more: bytes) -> None:
    info, data, chunks = PACK
    changed = data[: max(0, len(data) - cut)] + more
    if changed == data:
        return
    with pytest.raises(ObjectDamaged):
        check_pack_bytes(info, changed)
    with pytest.raises((ObjectDamaged, NotARecipient)):
        read_all(named(changed), changed, chunks)


PACK = build(CONTENT)


@settings(deadline=None)
@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "frame": st.integers(0, 2**32 - 1),
            "offset": st.integers(0, 2**64 - 1) | st.integers(0, 4000),
            "stored": st.integers(0, 2**32 - 1) | st.integers(0, 2000),
            "raw": st.integers(0, 2**20),
            "chunk_id": st.binary(min_size=32, max_size=32),
        },
    ),
    which=st.integers(0, 3),
)
def test_a_wrong_table_reads_the_right_chunk_or_nothing(fields: dict[str, object], which: int) -> None:
    info, data, chunks = PACK
    wrong = replace(chunks[which], **fields)  # type: ignore[arg-type]
    pack = OpenPack(info, data, OWNER.opening_key)
    if wrong == chunks[which]:
        return
    with pytest.raises(ObjectDamaged):
        pack.read_verified(wrong, CHUNK_KEY)


def test_a_chunk_under_the_id_of_another_is_noticed() -> None:
    """A writer that is trusted, yet wrong: the frame is authentic and its content is another's."""
    builder = PackBuilder([OWNER.recipient], 3)
    builder.add(chunk_id(b"right", CHUNK_KEY), b"wrong")
    info, data, chunks = builder.finish()
    pack = OpenPack(info, data, OWNER.opening_key)
    assert pack.read(chunks[0]) == b"wrong"
    with pytest.raises(ObjectDamaged):
        pack.read_verified(chunks[0], CHUNK_KEY)


# Chunk tables

PACKS = [PackInfo(f"{number:064x}", 1000 + number) for number in range(5)]
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
CHUNKS = st.builds(
    ChunkRef, st.binary(min_size=32, max_size=32), st.sampled_from([p.pack_id for p in PACKS]), U32, U64, U32, U32
)


@settings(deadline=None)
@given(chunks=st.lists(CHUNKS, max_size=30))
def test_a_chunk_table_reads_back(chunks: list[ChunkRef]) -> None:
    text = encode_chunks(chunks, PACKS)
    assert text.isascii()
    assert decode_chunks(text, PACKS) == chunks


@settings(deadline=None)
@given(chunks=st.lists(CHUNKS, min_size=1, max_size=3), data=st.data())
def test_a_changed_chunk_table_is_refused_or_differs(chunks: list[ChunkRef], data: st.DataObject) -> None:
    text = encode_chunks(chunks, PACKS)
    place = data.draw(st.integers(0, len(text) - 1))
    changed = text[:place] + data.draw(st.sampled_from(["", "A", "/", "!", "é", "="])) + text[place + 1 :]
    try:
        # The last letter of base64 may hold bits that stand for nothing.
        assert (decode_chunks(changed, PACKS) == chunks) == (b64decode(changed) == b64decode(text))
    except ObjectDamaged:
        assert changed != text


@settings(deadline=None)
@given(text=st.text() | st.text("ABCabc+/="))
def test_any_text_is_a_chunk_table_or_refused(text: str) -> None:
    with suppress(ObjectDamaged):
        assert all(chunk.pack_id in {pack.pack_id for pack in PACKS} for chunk in decode_chunks(text, PACKS))


@settings(deadline=None)
@given(chunks=st.lists(CHUNKS, max_size=30), wanted=st.lists(st.integers(0, 29)))
def test_a_chunk_table_finds_chunks_by_number_pack_and_id(chunks: list[ChunkRef], wanted: list[int]) -> None:
    table = ChunkTable()
    table.extend(chunks)
    assert (len(table), list(table), table[1:-1]) == (len(chunks), chunks, chunks[1:-1])
    for numbers in (None, [number for number in wanted if number < len(chunks)]):
        found = table.by_pack(numbers)
        expected: dict[str, list[int]] = {}
        for number in range(len(chunks)) if numbers is None else numbers:
            expected.setdefault(chunks[number].pack_id, []).append(number)
        assert [(pack, list(each)) for pack, each in found.items()] == list(expected.items())
    by_id = {chunk.chunk_id: chunk for chunk in chunks}
    index = pickle.loads(pickle.dumps(ChunkIndex(table)))
    assert index == by_id
    assert (len(index), list(index)) == (len(by_id), sorted(by_id))
    assert bytes(31) not in index
    with pytest.raises(IndexError):
        table[len(chunks)]


def test_a_table_that_names_a_pack_beyond_the_list_is_refused() -> None:
    text = encode_chunks([ChunkRef(bytes(32), PACKS[4].pack_id, 0, 0, 0, 0)], PACKS)
    with pytest.raises(ObjectDamaged):
        decode_chunks(text, PACKS[:4])


@settings(deadline=None, max_examples=5)
@given(seed=st.integers())
def test_many_random_chunks(seed: int) -> None:
    rng = random.Random(seed)
    contents = [rng.randbytes(rng.choice([0, 1, 100, 5000])) * rng.choice([1, 20]) for _ in range(200)]
    info, data, chunks = build(contents, 1)
    assert read_all(info, data, chunks) == contents
