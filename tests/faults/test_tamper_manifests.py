"""Manifests that cannot be trusted: a damaged, forged or replayed one is a problem of every listing and of nothing else."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import (
    CrmBackupError,
    ObjectNotFound,
    SnapshotNotFound,
)
from crmbackup.core.events import Event, Warned
from crmbackup.repository.chunks import PackInfo
from crmbackup.repository.edges import read_edges
from crmbackup.repository.manifest import MAGIC, PREFIX_SIZE, encode_manifest
from crmbackup.repository.repository import Repository, Snapshots, find_snapshot
from crmbackup.repository.sealing import STANZA_SIZE
from crmbackup.repository.signing import SIGNATURE_SIZE, HostKey
from tests.faulty import Faulty
from tests.support_tamper import LENGTHS, Kept, codes, flip, make_kept, places, swap


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return make_kept(tmp_path_factory.mktemp("tamper") / "site")


@pytest.fixture
def kept(original: Kept, tmp_path: Path) -> Kept:
    return original.copy(tmp_path / "site")


def manifest_regions(data: bytes) -> dict[str, range]:
    (size,) = struct.unpack_from("<I", data, len(MAGIC))
    header, sealed = PREFIX_SIZE + size, PREFIX_SIZE + size + SIGNATURE_SIZE
    return {
        "magic": range(6),
        "version": range(6, len(MAGIC)),
        "header size": range(len(MAGIC), PREFIX_SIZE),
        "header": range(PREFIX_SIZE, header),
        "signature": range(header, sealed),
        "stanza count": range(sealed, sealed + 2),
        "stanzas": range(sealed + 2, sealed + 2 + STANZA_SIZE),
        "body": range(sealed + 2 + STANZA_SIZE, len(data)),
    }


def lost(kept: Kept, code: str) -> None:
    """The incremental's manifest is a problem of every listing and of nothing else."""
    site = kept.site
    listing = site.open().snapshots("crm")
    assert listing.headers == (kept.full,)
    assert codes(listing.problems) == {code}
    assert site.open(key=False).snapshots("erp").problems == ()
    with pytest.raises(SnapshotNotFound):
        find_snapshot(listing.headers, kept.incremental.snapshot_id)
    for key in (True, False):
        assert codes(site.check(key=key, read=False).findings) == {code}
    assert kept.restores(kept.full, kept.other)


@pytest.mark.parametrize("region", ["magic", "version", "header size", "header", "signature"])
def test_a_manifest_with_a_changed_byte_in_its_plain_part_is_a_problem_of_the_listing(kept: Kept, region: str) -> None:
    path = kept.manifest(kept.incremental)
    data = path.read_bytes()
    for place in places(manifest_regions(data)[region], 6):
        flip(path, place, 1 << place % 8)
        lost(kept, "repository-too-new" if region == "version" else "object-damaged")
        path.write_bytes(data)
    assert kept.restores(kept.incremental)


@pytest.mark.parametrize("region", ["stanza count", "stanzas", "body"])
def test_a_manifest_with_a_changed_byte_in_its_sealed_part_is_not_restored(kept: Kept, region: str) -> None:
    site, path = kept.site, kept.manifest(kept.incremental)
    data = path.read_bytes()
    for place in places(manifest_regions(data)[region], 6):
        flip(path, place, 1 << place % 8)
        assert site.restore_fails(kept.incremental).code == "object-damaged"
        for key in (True, False):
            (finding,) = site.check(key=key, read=False).findings
            assert (finding.code, finding.snapshots) == ("object-damaged", (kept.incremental.snapshot_id,))
        path.write_bytes(data)
    assert kept.restores(kept.full, kept.incremental)


@pytest.mark.parametrize("damage", LENGTHS)
def test_a_manifest_of_another_length_is_a_problem_of_the_listing(kept: Kept, damage: Callable[[Path], None]) -> None:
    damage(kept.manifest(kept.incremental))
    lost(kept, "object-damaged")


def test_a_missing_manifest_is_noticed_by_the_host_that_wrote_it(kept: Kept) -> None:
    site = kept.site
    kept.manifest(kept.incremental).unlink()
    assert site.restore_fails(kept.incremental).code == "snapshot-not-found"
    assert kept.restores(kept.full)
    events: list[Event] = []
    taken = site.backup("incremental", emit=events.append)
    assert "parent-gone" in [event.code for event in events if isinstance(event, Warned)]
    assert taken.header.kind == "full"
    assert site.restored(taken.header) == kept.images[kept.incremental.snapshot_id]


def test_a_damaged_manifest_makes_the_next_run_full_with_a_warning(kept: Kept) -> None:
    flip(kept.manifest(kept.incremental), 100)
    events: list[Event] = []
    taken = kept.site.backup("incremental", emit=events.append)
    assert [event.code for event in events if isinstance(event, Warned)] == ["object-damaged", "parent-gone"]
    assert taken.header.kind == "full"
    assert kept.site.restored(taken.header) == kept.images[kept.incremental.snapshot_id]


def test_the_ends_of_a_history_leave_out_what_is_damaged_and_what_is_dated_in_the_future(kept: Kept) -> None:
    repository = kept.site.open(key=False)
    two = (kept.full, kept.incremental)  # of one second perhaps, then either may be taken for the newest
    edges = read_edges(repository, "crm", kept.incremental.captured)
    assert edges.newest in two
    assert (edges.count, edges.problems, edges.ahead) == (2, (), None)
    future = read_edges(repository, "crm", kept.full.captured - timedelta(microseconds=1))
    assert future.newest is None
    assert future.ahead in two
    flip(kept.manifest(kept.incremental), 100)
    edges = read_edges(repository, "crm", kept.full.captured)
    assert (edges.oldest, edges.newest, edges.ahead) == (kept.full, kept.full, None)
    assert codes(edges.problems) == {"object-damaged"}


def test_swapped_manifests_are_problems(kept: Kept) -> None:
    swap(kept.manifest(kept.full), kept.manifest(kept.incremental))
    listing = kept.site.open().snapshots("crm")
    assert (listing.headers, codes(listing.problems), len(listing.problems)) == ((), {"object-damaged"}, 2)
    assert codes(kept.site.check(key=False).findings) == {"object-damaged"}
    assert kept.restores(kept.other)


def test_a_manifest_replayed_under_another_name_is_a_problem(kept: Kept) -> None:
    later = kept.full.key.replace("snapshots/crm/2", "snapshots/crm/3")
    of_other = f"snapshots/crm/{kept.other.key.rsplit('/', 1)[1]}"
    for key, header in ((later, kept.full), (of_other, kept.other)):
        shutil.copy(kept.manifest(header), kept.site.object_path(key))
    listing = kept.site.open().snapshots("crm")
    assert listing.headers == (kept.full, kept.incremental)
    assert [problem.code for problem in listing.problems] == ["object-damaged", "object-damaged"]
    assert find_snapshot(listing.headers, "latest") == kept.incremental


def forge(kept: Kept, signer: HostKey, **changes: object) -> None:
    """Put a manifest that anyone can make who knows what is public."""
    header = replace(kept.incremental, snapshot_id="f" * 16, signer=signer.public.hex(), **changes)  # type: ignore[arg-type]
    path = kept.site.object_path(header.key)
    path.write_bytes(encode_manifest(header, {}, [kept.site.identity.recipient], signer))


def test_a_manifest_by_an_unknown_signer_is_a_problem(kept: Kept) -> None:
    forge(kept, HostKey.generate())
    for repository in (kept.site.open(), kept.site.open(key=False), kept.site.open(key=False, pin=False)):
        listing = repository.snapshots("crm")
        assert listing.headers == (kept.full, kept.incremental)
        assert codes(listing.problems) == {"untrusted-signature"}
    for key in (True, False):
        assert codes(kept.site.check(key=key).findings) == {"untrusted-signature"}
    assert kept.restores(kept.incremental)


def test_a_manifest_with_the_name_of_a_known_signer_is_a_problem(kept: Kept) -> None:
    """The header names our host and the thief signed it."""
    thief = HostKey.generate()
    header = replace(kept.incremental, snapshot_id="f" * 16)
    kept.site.object_path(header.key).write_bytes(encode_manifest(header, {}, [kept.site.identity.recipient], thief))
    assert codes(kept.site.open().snapshots("crm").problems) == {"object-damaged"}
    assert kept.restores(kept.incremental)


def test_a_manifest_of_another_repository_of_the_same_host_is_a_problem(kept: Kept) -> None:
    forge(kept, kept.site.host_key, repository_id="0" * 32)
    listing = kept.site.open().snapshots("crm")
    assert listing.headers == (kept.full, kept.incremental)
    assert codes(listing.problems) == {"untrusted-signature"}


def test_a_manifest_of_a_newer_format_is_told_apart(kept: Kept) -> None:
    path = kept.manifest(kept.incremental)
    path.write_bytes(b"CRMBMF02" + path.read_bytes()[8:])
    lost(kept, "repository-too-new")


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 10, b"CRMBMF01\xff\xff\xff\xff", b"CRMBMF01\x10\0\0\0" + b"[" * 80, b"x" * 100_000]
)
def test_anything_else_among_the_manifests_is_a_problem_and_no_more(kept: Kept, data: bytes) -> None:
    kept.site.object_path("snapshots/crm/0-README").write_bytes(data)
    kept.site.object_path("snapshots/zzz").write_bytes(data)
    assert len(kept.site.open().snapshots().problems) == 2
    listing = kept.site.open().snapshots("crm")
    assert (listing.headers, codes(listing.problems)) == ((kept.full, kept.incremental), {"object-damaged"})
    assert kept.restores(kept.incremental)


def test_a_manifest_that_needs_a_pack_it_does_not_list_is_not_restored(kept: Kept) -> None:
    """By a signer that we trust: what a faulty version of ours could write."""
    repository = kept.site.open()
    body = repository.body(kept.incremental)
    header = replace(kept.incremental, snapshot_id="e" * 16, packs=kept.incremental.packs[:1])
    repository.commit(header, body, SystemClock())
    header = next(each for each in kept.site.headers() if each.snapshot_id == "e" * 16)
    assert kept.site.restore_fails(header).code == "object-damaged"
    assert codes(kept.site.check().findings) == {"object-damaged"}


def test_a_manifest_whose_chunk_key_does_not_fit_is_found_by_check(kept: Kept) -> None:
    """Every frame is authentic, yet the snapshot cannot be restored: check with the identity must say so."""
    repository = kept.site.open()
    body = repository.body(kept.full) | {"chunk_key": "00" * 32}
    repository.commit(replace(kept.full, snapshot_id="e" * 16), body, SystemClock())
    header = next(each for each in kept.site.headers() if each.snapshot_id == "e" * 16)
    assert kept.site.restore_fails(header).code == "object-damaged"
    (finding,) = kept.site.check().findings
    assert finding.code == "object-damaged"
    assert "e" * 16 in finding.snapshots


def test_a_manifest_with_the_chunks_of_another_is_found_by_check(kept: Kept) -> None:
    repository = kept.site.open()
    body = repository.body(kept.incremental)
    # The same table over other packs: frames that these packs do not have.
    header = replace(kept.incremental, snapshot_id="e" * 16, packs=kept.incremental.packs[::-1])
    repository.commit(header, body, SystemClock())
    header = next(each for each in kept.site.headers() if each.snapshot_id == "e" * 16)
    assert kept.site.restore_fails(header).code == "object-damaged"
    assert "e" * 16 in {name for finding in kept.site.check().findings for name in finding.snapshots}


# Listings and writers


def test_a_header_larger_than_one_read_is_listed_and_checked(kept: Kept) -> None:
    repository = kept.site.open()
    packs = tuple(PackInfo(f"{number:064x}", number) for number in range(1000))
    header = replace(kept.full, snapshot_id="d" * 16, packs=packs)
    repository.storage.put(header.key, encode_manifest(header, {}, repository.recipients, kept.site.host_key))
    assert header in repository.snapshots("crm").headers
    path = kept.manifest(header)
    data = path.read_bytes()
    assert len(data) > 64 * 1024
    for place in (20_000, 60_000):
        flip(path, place)
        assert codes(repository.snapshots("crm").problems) == {"object-damaged"}
        path.write_bytes(data)
    path.write_bytes(data[:30_000])
    assert codes(repository.snapshots("crm").problems) == {"object-damaged"}


def test_a_manifest_deleted_while_it_is_listed_is_no_problem(kept: Kept) -> None:
    storage = Faulty(kept.site.spec.open())
    repository = Repository.open(storage, identity=kept.site.identity)
    storage.fail("get", ObjectNotFound("gone"), times=None, when=lambda key: key == kept.full.key)
    assert repository.snapshots("crm") == Snapshots((kept.incremental,), ())


def test_a_run_reuses_nothing_that_is_about_to_be_deleted(kept: Kept) -> None:
    """Were it to do so, no run would ever succeed again."""
    site = kept.site
    site.spec.open().put(f"condemned/{kept.full.packs[0].pack_id}", b"")
    events: list[Event] = []
    expected = site.fill(rows=3)
    taken = site.backup("incremental", emit=events.append)
    assert "packs-gone" in [event.code for event in events if isinstance(event, Warned)]
    assert taken.header.kind == "full"
    assert not set(taken.header.packs) & set(kept.incremental.packs)
    assert site.restored(taken.header) == expected


def test_a_pack_condemned_during_the_run_stops_the_commit(kept: Kept) -> None:
    site = kept.site
    site.fill(rows=3)

    def condemn(event: Event) -> None:
        site.spec.open().put(f"condemned/{kept.full.packs[0].pack_id}", b"")

    with pytest.raises(CrmBackupError) as caught:
        site.backup("incremental", emit=condemn)
    assert caught.value.code == "pack-missing"
    assert site.headers() == (kept.full, kept.incremental)


def test_a_full_shares_nothing_with_what_is_older(kept: Kept) -> None:
    taken = kept.site.backup("full").header
    older = {pack for header in (kept.full, kept.incremental, kept.other) for pack in header.packs}
    assert not older & set(taken.packs)
    shutil.rmtree(kept.pack.parent)
    assert kept.site.restored(taken) == kept.images[kept.incremental.snapshot_id]
