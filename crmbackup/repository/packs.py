"""Many packs in little memory: what a manifest names, and what is stored. 40 to 48 bytes for each pack.

A repository of some terabytes has a million packs, and a list of snapshots names each of them many times.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import overload

from crmbackup.core.errors import StorageUnavailable
from crmbackup.repository.chunks import PackInfo, pack_key
from crmbackup.storage.base import ObjectInfo

_ID = 32
_ID_HEX = 2 * _ID


class PackList(Sequence[PackInfo]):
    """Packs in a given order. Each PackInfo is made when it is asked for. Equal to any sequence of the same packs."""

    __slots__ = ("_ids", "_sizes")

    def __init__(self, names: Sequence[str], sizes: Iterable[int]) -> None:
        """names: ids in hex. sizes: in bytes, as many. Raises ValueError for what is neither."""
        if any(len(name) != _ID_HEX for name in names):
            raise ValueError("a pack's name has another length")
        self._ids = bytes.fromhex("".join(names))
        try:
            self._sizes = array("Q", sizes)
        except OverflowError as error:
            raise ValueError("a pack's size makes no sense") from error
        if len(self._ids) != _ID * len(self._sizes):
            raise ValueError("a pack's name is no hexadecimal number")

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, at: int) -> PackInfo: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[PackInfo, ...]: ...
    def __getitem__(self, at: int | slice) -> PackInfo | tuple[PackInfo, ...]:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(*at.indices(len(self))))
        size = self._sizes[at]  # raises IndexError
        start = (at if at >= 0 else len(self) + at) * _ID
        return PackInfo(self._ids[start : start + _ID].hex(), size)

    def __iter__(self) -> Iterator[PackInfo]:
        return (PackInfo(raw.hex(), size) for raw, size in self.rows())

    def rows(self) -> Iterator[tuple[bytes, int]]:
        """Ids as bytes, and sizes."""
        ids = self._ids
        return ((ids[number * _ID : (number + 1) * _ID], size) for number, size in enumerate(self._sizes))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackList):
            return self._ids == other._ids and self._sizes == other._sizes
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))


class StoredPacks(Mapping[str, int]):
    """Every pack that lies in storage, by its id in hex, and its size in bytes. `sizes` has them by number."""

    def __init__(self, listing: Iterable[ObjectInfo]) -> None:
        """listing: of what lies below `packs/`. What has no name of a pack, or lies elsewhere, is left out.

        Raises StorageError.
        """
        ids, self.sizes, self._times = bytearray(), array("Q"), array("d")
        for info in listing:
            name = info.key[-_ID_HEX:]
            raw = _raw(name)
            if raw is None or info.key != pack_key(name):
                continue
            # Listings come in the order of keys. If one does not, that must not make us take a pack for missing.
            if ids and raw <= ids[-_ID:]:
                raise StorageUnavailable("cannot list the packs", why=f"{info.key} comes out of order")
            ids += raw
            self.sizes.append(info.size)
            self._times.append(info.modified.timestamp())
        self._ids = bytes(ids)
        #: Where ids begin that have the same first bits: few enough for a search in C to be quick.
        self._shift = 16 - min(16, len(self.sizes).bit_length())
        self._starts = self._buckets()

    def _buckets(self) -> array[int]:
        counts = array("Q", bytes(array("Q").itemsize * ((1 << 16 - self._shift) + 1)))
        for start in range(0, len(self._ids), _ID):
            counts[(self._ids[start] << 8 | self._ids[start + 1]) >> self._shift] += 1
        total = 0
        for bucket, count in enumerate(counts):
            counts[bucket] = total
            total += count
        return counts

    def position(self, pack_id: str) -> int:
        """The number of a pack, counted from 0 in the order of ids; -1 when it is not there."""
        raw = _raw(pack_id)
        return -1 if raw is None else self._find(raw)

    def look_up(self, packs: Iterable[PackInfo]) -> Iterator[tuple[int, int]]:
        """For each pack its number, -1 when it is not there, and the size that is expected of it."""
        if isinstance(packs, PackList):
            return ((self._find(raw), size) for raw, size in packs.rows())
        return ((self.position(pack.pack_id), pack.size) for pack in packs)

    def lacking(self, packs: Iterable[PackInfo]) -> int:
        """How many of these are not there, or have another size."""
        return sum(position < 0 or self.sizes[position] != size for position, size in self.look_up(packs))

    def _find(self, raw: bytes) -> int:
        bucket = (raw[0] << 8 | raw[1]) >> self._shift
        at, end = self._starts[bucket] * _ID, self._starts[bucket + 1] * _ID
        while (at := self._ids.find(raw, at, end)) >= 0:
            if at % _ID == 0:
                return at // _ID
            at += 1  # across the border of two ids
        return -1

    def at(self, position: int) -> PackInfo:
        """The pack of that number."""
        return PackInfo(self._ids[position * _ID : (position + 1) * _ID].hex(), self.sizes[position])

    def modified(self, position: int) -> datetime:
        """When the pack of that number was stored, by the storage's clock."""
        return datetime.fromtimestamp(self._times[position], UTC)

    @property
    def size(self) -> int:
        """Bytes of all packs together."""
        return sum(self.sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[str]:
        return (self._ids[start : start + _ID].hex() for start in range(0, len(self._ids), _ID))

    def __getitem__(self, pack_id: str) -> int:
        position = self.position(pack_id)
        if position < 0:
            raise KeyError(pack_id)
        return self.sizes[position]


def _raw(name: str) -> bytes | None:
    """The bytes of an id in lower-case hex; None for anything else."""
    try:
        raw = bytes.fromhex(name)
    except ValueError:
        return None
    return raw if len(raw) == _ID and raw.hex() == name else None
