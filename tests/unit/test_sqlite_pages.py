"""Layouts of page images, hashes, the log's pages and varints: pure functions against simple models."""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Sequence
from itertools import pairwise

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import ObjectDamaged
from crmbackup.engines.sqlite.pages import (
    BLOCK_SIZE,
    Extent,
    block_hashes,
    decode_layout,
    encode_layout,
    image_digest,
    page_hashes,
    renumber,
    replace,
    runs,
)
from crmbackup.engines.sqlite.wal import Logged

KEY = bytes(range(32))


def places(extents: Sequence[Extent]) -> dict[int, tuple[int, int]]:
    """Page -> (chunk, page within it)."""
    return {e.first + i: (e.chunk, e.start + i) for e in extents for i in range(e.length)}


@st.composite
def images(draw: st.DrawFn, chunk: int = 0) -> list[Extent]:
    """A whole image of up to 60 pages."""
    result, position = [], 1
    for number, length in enumerate(draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))):
        result.append(Extent(position, length, chunk + number % 3, draw(st.integers(0, 5))))
        position += length
    return result


@given(pages=st.sets(st.integers(1, 200)))
def test_runs_are_the_pages(pages: set[int]) -> None:
    found = list(runs(sorted(pages)))
    assert [first + i for first, count in found for i in range(count)] == sorted(pages)
    assert all(first + count < following for (first, count), (following, _) in pairwise(found))


@given(old=images(), changed=st.sets(st.integers(1, 80)), page_count=st.integers(1, 80))
def test_new_pages_replace_old_ones(old: list[Extent], changed: set[int], page_count: int) -> None:
    old_pages = places(old)
    changed = {page for page in changed if page <= page_count} | set(range(len(old_pages) + 1, page_count + 1))
    new, start = [], 0
    for first, count in runs(sorted(changed)):
        new.append(Extent(first, count, 99, start))
        start += count
    expected = {page: old_pages[page] for page in range(1, min(page_count, len(old_pages)) + 1)} | places(new)
    result = list(replace(old, new, page_count))
    assert places(result) == expected
    assert [e.first for e in result] == sorted(e.first for e in result)
    numbered, chunks = renumber(result)
    assert {page: (chunks[chunk], at) for page, (chunk, at) in places(numbered).items()} == expected
    assert list(dict.fromkeys(e.chunk for e in numbered)) == list(range(len(chunks)))
    for size in (512, 4096, 65536):
        layout = json.loads(json.dumps(encode_layout(numbered, size, page_count)))
        assert decode_layout(layout) == (numbered, size, page_count)


@pytest.mark.parametrize(
    ("old", "new", "page_count"),
    [
        ([], [], 1),
        ([Extent(1, 3, 0, 0)], [], 4),
        ([Extent(1, 3, 0, 0)], [Extent(5, 1, 1, 0)], 5),
        ([Extent(1, 3, 0, 0)], [Extent(2, 1, 1, 0), Extent(2, 1, 1, 1)], 3),
        ([Extent(1, 3, 0, 0)], [Extent(4, 2, 1, 0)], 4),
        ([Extent(1, 1, 0, 0), Extent(3, 1, 0, 1)], [], 3),
    ],
)
def test_gaps_and_overlaps_are_refused(old: list[Extent], new: list[Extent], page_count: int) -> None:
    with pytest.raises(ValueError, match="page"):
        list(replace(old, new, page_count))


@given(image=images(), at=st.integers(0, 10**6), noise=st.binary(max_size=20))
def test_layouts_that_were_damaged_are_refused_or_whole(image: list[Extent], at: int, noise: bytes) -> None:
    layout = encode_layout(renumber(image)[0], 1024, sum(e.length for e in image))
    rows = bytearray(base64.b64decode(str(layout["extents"])))
    rows[at % len(rows) : at % len(rows) + len(noise)] = noise
    layout["extents"] = base64.b64encode(rows).decode()
    try:
        extents, _, page_count = decode_layout(layout)
    except ObjectDamaged:
        return
    assert sorted(places(extents)) == list(range(1, page_count + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"type": "files"},
        {"page_size": 0},
        {"page_size": 1000},
        {"page_size": -512},
        {"page_count": 2},
        {"page_count": "many"},
        {"extents": "?"},
        {"extents": "AAAA"},
        {"extents": None},
        {"extents": ""},
    ],
)
def test_senseless_layouts_are_refused(change: dict[str, object]) -> None:
    layout = encode_layout(renumber([Extent(1, 1, 0, 0)])[0], 1024, 1) | change
    with pytest.raises(ObjectDamaged):
        decode_layout(layout)
    with pytest.raises(ObjectDamaged):
        decode_layout({name: value for name, value in layout.items() if name not in change})


@given(data=st.binary(min_size=1, max_size=3 * BLOCK_SIZE // 512).map(lambda seed: seed * 512))
def test_hashes_of_blocks_and_pages(data: bytes) -> None:
    blocks = [data[at : at + BLOCK_SIZE] for at in range(0, len(data), BLOCK_SIZE)]
    assert block_hashes(memoryview(data)) == b"".join(blake3.blake3(block).digest() for block in blocks)
    pages = [data[at : at + 512] for at in range(0, len(data), 512)]
    expected = b"".join(blake3.blake3(page, key=KEY).digest()[:16] for page in pages)
    assert page_hashes(memoryview(data), 512, KEY) == expected
    assert image_digest([block_hashes(memoryview(data))]) == image_digest(map(_hash, blocks))


def _hash(block: bytes) -> bytes:
    return blake3.blake3(block).digest()


@given(
    frames=st.dictionaries(st.integers(1, 50), st.integers(1, 1000)), first=st.integers(1, 60), count=st.integers(0, 60)
)
def test_pages_in_the_log(frames: dict[int, int], first: int, count: int) -> None:
    pages = sorted(frames)
    logged = Logged(array("I", pages), array("I", [frames[page] for page in pages]))
    assert logged.among(first, count) == [(page, frames[page]) for page in pages if first <= page < first + count]
