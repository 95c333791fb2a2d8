"""Packs: many encrypted chunks in one immutable object.

    "CRMBPK01" | stanzas (see sealing) | frame 0 | frame 1 | ... | footer | footer size u32 | "CRMBPKEN"

Frame n is AES-256-GCM (nonce = n as 12 bytes, big endian; associated data = the chunk's id) over one Zstandard frame.
The footer is sealed the same way (nonce = 2^96 - 1, associated data = "crmbackup/1 pack footer") over Zstandard over
the rows chunk id (32) | offset u64 | stored u32 | raw u32, so that a pack describes itself to a recipient.
Integers are little endian unless said otherwise. The pack's name is the BLAKE3 of all its bytes, in hex.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crmbackup.core.errors import ObjectDamaged
from crmbackup.repository.chunks import ChunkRef, PackInfo, chunk_id, compressor, decompress, decompressor
from crmbackup.repository.sealing import TAG_SIZE, new_data_key, stanzas_size, unwrap, wrap

MAGIC = b"CRMBPK01"
END_MAGIC = b"CRMBPKEN"
WRAP_CONTEXT = b"crmbackup/1 pack"
FOOTER_CONTEXT = b"crmbackup/1 pack footer"
_FOOTER_NONCE = b"\xff" * 12
_FOOTER_ROW = struct.Struct("<32sQII")
_TRAILER = struct.Struct("<I8s")


def _nonce(frame: int) -> bytes:
    return frame.to_bytes(12, "big")


class PackBuilder:
    """Collects chunks and gives the finished pack. One use, one thread."""

    def __init__(self, recipients: Sequence[bytes], level: int) -> None:
        data_key = new_data_key()
        self._cipher = AESGCM(data_key)
        self._level = level
        self._data = bytearray(MAGIC + wrap(data_key, recipients, WRAP_CONTEXT))
        self._rows: list[tuple[bytes, int, int, int]] = []

    def __len__(self) -> int:
        """How many chunks it holds."""
        return len(self._rows)

    @property
    def size(self) -> int:
        """Bytes so far, without the footer."""
        return len(self._data)

    def add(self, identifier: bytes, data: bytes | bytearray | memoryview) -> None:
        """Compress and encrypt one chunk as the next frame."""
        # Compressed bytes have no name here: they are gone before the frame is copied.
        frame = self._cipher.encrypt(_nonce(len(self._rows)), compressor(self._level).compress(data), identifier)
        self._rows.append((identifier, len(self._data), len(frame), len(data)))
        self._data += frame

    def finish(self) -> tuple[PackInfo, bytearray, list[ChunkRef]]:
        """Name and size, the bytes to store, and where each chunk lies."""
        footer = compressor(self._level).compress(b"".join(_FOOTER_ROW.pack(*row) for row in self._rows))
        sealed = self._cipher.encrypt(_FOOTER_NONCE, footer, FOOTER_CONTEXT)
        # Grown in place: a copy at the end would double what a pack needs.
        data = self._data
        data += sealed + _TRAILER.pack(len(sealed), END_MAGIC)
        info = PackInfo(blake3.blake3(data).hexdigest(), len(data))
        chunks = [
            ChunkRef(identifier, info.pack_id, frame, offset, stored, raw)
            for frame, (identifier, offset, stored, raw) in enumerate(self._rows)
        ]
        return info, data, chunks


class OpenPack:
    """A pack read from storage whose name was compared with its bytes.

    Raises ObjectDamaged from every method for bytes that are not what was written.
    """

    def __init__(self, info: PackInfo, data: bytes, opening_key: X25519PrivateKey) -> None:
        check_pack_bytes(info, data)
        self.info = info
        self._data = memoryview(data)
        stanzas_end = len(MAGIC) + stanzas_size(data, len(MAGIC))
        self._cipher = AESGCM(unwrap(self._data[len(MAGIC) : stanzas_end], opening_key, WRAP_CONTEXT))

    def read(self, chunk: ChunkRef) -> bytes:
        """The decrypted, decompressed bytes of one chunk. Its id is authenticated, not recomputed."""
        frame = self._data[chunk.offset : chunk.offset + chunk.stored]
        try:
            compressed = self._cipher.decrypt(_nonce(chunk.frame), frame, chunk.chunk_id)
        except InvalidTag as error:
            raise ObjectDamaged(
                f"frame {chunk.frame} of pack {self.info.pack_id[:16]} is not what was written",
                why="its authentication tag does not fit",
            ) from error
        return decompress(compressed, chunk.raw)

    def read_verified(self, chunk: ChunkRef, chunk_key: bytes) -> bytes:
        """As `read`, and the content's keyed hash must be the chunk's id."""
        content = self.read(chunk)
        self.verify(chunk, content, chunk_key)
        return content

    def verify(self, chunk: ChunkRef, content: bytes, chunk_key: bytes) -> None:
        """Compare what was read with the chunk's id."""
        if chunk_id(content, chunk_key) != chunk.chunk_id:
            raise ObjectDamaged(
                f"frame {chunk.frame} of pack {self.info.pack_id[:16]} holds another chunk than its id says"
            )

    def chunks(self) -> list[ChunkRef]:
        """What the pack says of itself, from its sealed footer."""
        if len(self._data) < _TRAILER.size + TAG_SIZE:
            raise ObjectDamaged(f"pack {self.info.pack_id[:16]} is cut short")
        size, magic = _TRAILER.unpack_from(self._data, len(self._data) - _TRAILER.size)
        end = len(self._data) - _TRAILER.size
        if magic != END_MAGIC or size > end:
            raise ObjectDamaged(f"pack {self.info.pack_id[:16]} has no footer")
        try:
            footer = self._cipher.decrypt(_FOOTER_NONCE, self._data[end - size : end], FOOTER_CONTEXT)
        except InvalidTag as error:
            raise ObjectDamaged(f"the footer of pack {self.info.pack_id[:16]} is not what was written") from error
        rows = _FOOTER_ROW.iter_unpack(decompressor().decompress(footer))
        return [ChunkRef(row[0], self.info.pack_id, frame, *row[1:]) for frame, row in enumerate(rows)]


def check_pack_bytes(info: PackInfo, data: bytes) -> None:
    """Compare a pack with its name: needs no key. Raises ObjectDamaged."""
    if len(data) != info.size:
        raise ObjectDamaged(
            f"pack {info.pack_id[:16]} is damaged", why=f"it has {len(data)} bytes instead of {info.size}"
        )
    if blake3.blake3(data).hexdigest() != info.pack_id or not data.startswith(MAGIC):
        raise ObjectDamaged(f"pack {info.pack_id[:16]} is damaged", why="its BLAKE3 is not its name")
