"""A repository to tamper with, and how."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from crmbackup.core.errors import CrmBackupError
from crmbackup.repository.chunks import pack_key
from crmbackup.repository.manifest import ManifestHeader
from tests.support_repo import PASSPHRASE, Site


@dataclass(frozen=True)
class Kept:
    """A repository with a full and an incremental of one policy and a full of another, and what each must restore to."""

    site: Site
    full: ManifestHeader
    incremental: ManifestHeader
    other: ManifestHeader
    images: dict[str, bytes]

    def copy(self, root: Path) -> Kept:
        return replace(self, site=self.site.copy(root))

    @property
    def pack(self) -> Path:
        """The pack that both snapshots of the policy need."""
        return self.site.object_path(pack_key(self.full.packs[0].pack_id))

    @property
    def small_pack(self) -> Path:
        """The pack that only the incremental needs."""
        (info,) = set(self.incremental.packs) - set(self.full.packs)
        return self.site.object_path(pack_key(info.pack_id))

    @property
    def wrapped(self) -> Path:
        return self.site.object_path(f"keys/{self.site.identity.recipient.hex()}.json")

    def manifest(self, header: ManifestHeader) -> Path:
        return self.site.object_path(header.key)

    def restores(self, *headers: ManifestHeader) -> bool:
        return all(self.site.restored(header) == self.images[header.snapshot_id] for header in headers)


def make_kept(root: Path) -> Kept:
    """A fresh one, known to be whole."""
    site = Site.make(root, passphrase=PASSPHRASE)
    images: dict[str, bytes] = {}

    def take(site: Site, kind: str, rows: int) -> ManifestHeader:
        image = site.fill(rows=rows)
        header = site.backup(kind).header  # type: ignore[arg-type]
        images[header.snapshot_id] = image
        return header

    full, incremental = take(site, "full", 300), take(site, "incremental", 20)
    other = take(site.for_policy("erp"), "full", 100)
    assert (full.kind, incremental.kind, len(incremental.packs)) == ("full", "incremental", 2)
    kept = Kept(site, full, incremental, other, images)
    assert kept.restores(full, incremental, other)
    assert site.check().findings == site.check(key=False).findings == ()
    return kept


def flip(path: Path, place: int, mask: int = 0x01) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= mask
    path.write_bytes(data)


def cut_to_nothing(path: Path) -> None:
    path.write_bytes(b"")


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_one_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def add_one_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


LENGTHS = [cut_to_nothing, cut_in_half, cut_one_byte, add_one_byte]


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def places(region: range, count: int = 4) -> list[int]:
    """The borders of a region, and some places between, always the same."""
    inner = random.Random(len(region)).sample(region, min(count, len(region)))
    return sorted({region[0], region[-1], *inner})


def codes(found: tuple[CrmBackupError, ...] | tuple[object, ...]) -> set[str]:
    return {each.code for each in found}  # type: ignore[attr-defined]


def no_backup(site: Site, error: type[CrmBackupError]) -> None:
    before = sorted(path for path in site.repo.rglob("*") if path.is_file())
    with pytest.raises(error):
        site.backup()
    assert sorted(path for path in site.repo.rglob("*") if path.is_file()) == before
