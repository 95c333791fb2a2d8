"""What this host remembers of the last snapshot, so that the next incremental reads and ships less.

Files in one directory: `pages.bin` (16-byte hash of each page), `blocks.bin` (32-byte hash of each block), `tables.json`
and `table-pages.bin` (which pages hold which segment). `tables.json` holds the BLAKE3 of the other three: anything that
does not fit is taken as lost, which costs a full snapshot and never data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import blake3

from crmbackup.core.files import PRIVATE_FILE, local_error, write_durably
from crmbackup.engines.base import Segment
from crmbackup.engines.sqlite.pagelists import NUMBER_SIZE, PageList, PageListWriter
from crmbackup.engines.sqlite.pages import BLOCK_HASH_SIZE, PAGE_HASH_SIZE
from crmbackup.engines.sqlite.structure import Part, Structure

PAGES, BLOCKS, TABLES, TABLE_PAGES = "pages.bin", "blocks.bin", "tables.json", "table-pages.bin"
#: Lists of pages as they were found, until `save` has copied what is kept of them.
SCRATCH = "found-{}.tmp"
_COPY_SIZE = 1024 * 1024


@dataclass(frozen=True)
class TableState:
    """A table as of the snapshot. definition: a digest of what says how its rows are read."""

    root: int
    definition: str
    structure: Structure
    segments: tuple[Segment, ...]


class StateLost(Exception):
    """The state cannot be used; the text says why."""


class ParentState:
    """The state of an earlier snapshot. Raises StateLost when it is not whole.

    pages, blocks: the files with the hashes.
    """

    def __init__(self, directory: Path) -> None:
        try:
            document = json.loads((directory / TABLES).read_bytes())
            for name in (PAGES, BLOCKS, TABLE_PAGES):
                if _file_hash(directory / name) != document["blake3"][name]:
                    raise StateLost(f"{name} is damaged")
            numbers = PageList(directory / TABLE_PAGES, 0, (directory / TABLE_PAGES).stat().st_size // NUMBER_SIZE)
            self.page_size = int(document["page_size"])
            self.pages, self.blocks = directory / PAGES, directory / BLOCKS
            self.tables = {name: _table(fields, numbers) for name, fields in document["tables"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StateLost(f"the local state cannot be read ({error})") from error


class StateWriter:
    """Collects the state of the snapshot at hand. `save` makes it usable; until then it counts as lost."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        with self._writing():
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._pages = os.open(directory / PAGES, flags, PRIVATE_FILE)
            self._blocks = os.open(directory / BLOCKS, flags, PRIVATE_FILE)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_error(error, f"write the local state in {self._directory}") from error

    def begin_with(self, parent: ParentState) -> None:
        """All page hashes are the parent's until `put_pages` says otherwise."""
        with self._writing(), parent.pages.open("rb") as stream:
            offset = 0
            while data := stream.read(_COPY_SIZE):
                os.pwrite(self._pages, data, offset)
                offset += len(data)

    def put_pages(self, first: int, hashes: bytes) -> None:
        """The hashes of pages from page `first` on."""
        with self._writing():
            os.pwrite(self._pages, hashes, (first - 1) * PAGE_HASH_SIZE)

    def put_blocks(self, number: int, hashes: bytes) -> None:
        """The hashes of blocks from block `number` on, counted from 0. Every block needs one."""
        with self._writing():
            os.pwrite(self._blocks, hashes, number * BLOCK_HASH_SIZE)

    def save(self, page_size: int, page_count: int, tables: dict[str, TableState]) -> str:
        """Make everything durable; tables.json comes last. Gives the image's digest. Raises LocalError."""
        with PageListWriter(self._directory / TABLE_PAGES) as writer:
            described = {name: _describe(table, writer) for name, table in tables.items()}
            writer.sync()
        with self._writing():
            os.ftruncate(self._pages, page_count * PAGE_HASH_SIZE)
            os.fsync(self._pages)
            os.fsync(self._blocks)
            for path in self._directory.glob(SCRATCH.format("*")):
                path.unlink()
            hashes = {name: _file_hash(self._directory / name) for name in (PAGES, BLOCKS, TABLE_PAGES)}
        document = {"page_size": page_size, "blake3": hashes, "tables": described}
        write_durably(self._directory / TABLES, json.dumps(document).encode("utf-8"))
        # The digest of an image is that of its blocks' hashes, one behind the other: of that file.
        return hashes[BLOCKS]

    def close(self) -> None:
        """Give the files back."""
        os.close(self._pages)
        os.close(self._blocks)


def _file_hash(path: Path) -> str:
    hasher = blake3.blake3()
    with path.open("rb") as stream:
        while data := stream.read(_COPY_SIZE):
            hasher.update(data)
    return hasher.hexdigest()


def _describe(table: TableState, writer: PageListWriter) -> dict[str, Any]:
    """The table as JSON; its page numbers go to `writer` and are only counted in the JSON."""
    interior = writer.copy(table.structure.interior)
    parts = [writer.copy(part.pages) for part in table.structure.parts]
    return {
        "root": table.root,
        "definition": table.definition,
        "longest": table.structure.longest,
        "average": table.structure.average,
        "interior": interior.count,
        "parts": [part.count for part in parts],
        "start": interior.start,
        "segments": [asdict(segment) for segment in table.segments],
    }


def _table(fields: dict[str, Any], numbers: PageList) -> TableState:
    at = int(fields["start"])
    segments = tuple(Segment(**segment) for segment in fields["segments"])

    def take(count: int) -> PageList:
        nonlocal at
        at += count
        if not 0 <= at - count <= at <= numbers.count:
            raise ValueError(f"{TABLE_PAGES} has no number {at}")
        return PageList(numbers.path, at - count, count)

    interior = take(int(fields["interior"]))
    parts = tuple(
        Part(segment.low, segment.high, take(int(count)))
        for segment, count in zip(segments, fields["parts"], strict=True)
    )
    structure = Structure(interior, parts, int(fields["longest"]), int(fields["average"]))
    return TableState(int(fields["root"]), str(fields["definition"]), structure, segments)
