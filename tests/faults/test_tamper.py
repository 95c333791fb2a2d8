"""A storage that cannot be trusted: every changed, cut, missing, swapped or replayed object is detected by the operation
that touches it, nothing half is restored, and what is whole can still be restored.
"""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.errors import (
    CrmBackupError,
    IdentityMissing,
    ObjectDamaged,
    RepositoryMissing,
    RepositoryTooNew,
    UntrustedSignature,
    WrongPassphrase,
)
from crmbackup.core.events import Event, Warned
from crmbackup.repository.chunks import pack_key
from crmbackup.repository.identity import Identity
from crmbackup.repository.pack import check_pack_bytes
from crmbackup.repository.repository import open_wrapped_identity
from crmbackup.repository.sealing import STANZA_SIZE
from crmbackup.repository.signing import REPOSITORY, HostKey
from tests.support_repo import PASSPHRASE, Site
from tests.support_tamper import LENGTHS, Kept, codes, flip, make_kept, no_backup, places, swap

DOCUMENT = "repository.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return make_kept(tmp_path_factory.mktemp("tamper") / "site")


@pytest.fixture
def kept(original: Kept, tmp_path: Path) -> Kept:
    return original.copy(tmp_path / "site")


# repository.json


def unusable(kept: Kept, *errors: type[CrmBackupError]) -> None:
    """Nothing trusts the document: not with the identity, not with what the host pinned, not even without either."""
    site = kept.site
    for key, pin in ((True, True), (True, False), (False, True), (False, False)):
        with pytest.raises(errors):
            site.open(key=key, pin=pin)
    assert isinstance(site.restore_fails(kept.full), errors)
    with pytest.raises(errors):
        site.check()
    with pytest.raises(errors):
        site.backup()


FIELDS = ["created", "format", "owner", "recipients", "repository_id", "sequence", "signature", "signers"]


@pytest.mark.parametrize("field", FIELDS)
def test_repository_json_with_a_changed_byte_is_refused(kept: Kept, field: str) -> None:
    path = kept.site.object_path(DOCUMENT)
    data = path.read_bytes()
    start = data.index(f'"{field}":'.encode())
    for place in (start, start + 1, start + len(field) + 3, start + len(field) + 4):
        flip(path, place)
        unusable(kept, ObjectDamaged, UntrustedSignature, RepositoryTooNew)
        path.write_bytes(data)
    assert kept.restores(kept.incremental)


@pytest.mark.parametrize("damage", LENGTHS)
def test_repository_json_of_another_length_is_refused(kept: Kept, damage: Callable[[Path], None]) -> None:
    damage(kept.site.object_path(DOCUMENT))
    unusable(kept, ObjectDamaged)


def test_without_repository_json_there_is_no_repository(kept: Kept) -> None:
    kept.site.object_path(DOCUMENT).unlink()
    unusable(kept, RepositoryMissing)


def test_repository_json_of_a_newer_format_asks_for_a_newer_version(kept: Kept) -> None:
    path = kept.site.object_path(DOCUMENT)
    body = parse_json(path.read_bytes())
    assert isinstance(body, dict)
    del body["signature"]
    body |= {"format": 2, "whatever": []}
    signature = kept.site.identity.owner_key.sign(REPOSITORY + canonical_json(body)).hex()
    path.write_bytes(canonical_json({**body, "signature": signature}) + b"\n")
    unusable(kept, RepositoryTooNew)


def test_the_repository_of_a_thief_in_place_of_ours_is_refused(kept: Kept, tmp_path: Path) -> None:
    """Whole and well signed, only not by our owner; and it lists our host, so that it would go on writing."""
    thief = Identity.generate()
    document = kept.site.open().document
    forged = replace(document, owner=thief.owner, sequence=document.sequence + 1).encode(thief)
    kept.site.object_path(DOCUMENT).write_bytes(forged)
    for key, pin in ((True, True), (True, False), (False, True)):
        with pytest.raises(UntrustedSignature):
            kept.site.open(key=key, pin=pin)
    no_backup(kept.site, UntrustedSignature)
    assert isinstance(kept.site.restore_fails(kept.full), UntrustedSignature)

    # With the name of ours but all else theirs, or all of theirs.
    theirs = Site.make(tmp_path / "theirs")
    shutil.copy(theirs.object_path(DOCUMENT), kept.site.object_path(DOCUMENT))
    no_backup(kept.site, UntrustedSignature)
    assert isinstance(kept.site.restore_fails(kept.full), UntrustedSignature)


def test_an_old_list_of_hosts_is_refused_by_a_host_that_knows_better(kept: Kept) -> None:
    path = kept.site.object_path(DOCUMENT)
    old = path.read_bytes()
    second = HostKey.generate()
    repository = kept.site.open()
    repository.join(second, "second-host", kept.full.finished)
    site = replace(kept.site, host_key_text=second.to_text(), pin=repository.pin)
    site.database.write_bytes(kept.images[kept.incremental.snapshot_id])
    taken = site.backup("full").header

    path.write_bytes(old)
    no_backup(site, UntrustedSignature)
    with pytest.raises(UntrustedSignature):
        site.open(key=True)
    # The identity alone cannot tell an old list from a new one, but does not trust what is not in it.
    listing = site.open(pin=False).snapshots("crm")
    assert taken not in listing.headers
    assert codes(listing.problems) == {"untrusted-signature"}


def test_a_host_that_is_not_listed_writes_nothing(kept: Kept) -> None:
    stranger = replace(kept.site, host_key_text=HostKey.generate().to_text())
    stranger.database.unlink()  # so that reading the source would be another error
    no_backup(stranger, UntrustedSignature)


# keys/


def test_the_wrapped_identity_opens_with_its_passphrase_only(kept: Kept) -> None:
    storage = kept.site.spec.open()
    assert open_wrapped_identity(storage, PASSPHRASE).owner == kept.site.identity.owner
    with pytest.raises(WrongPassphrase):
        open_wrapped_identity(storage, PASSPHRASE + "!")


@pytest.mark.parametrize("field", ["format", "kdf", "nonce", "recipient", "salt", "sealed"])
def test_a_wrapped_identity_with_a_changed_byte_does_not_open(kept: Kept, field: str) -> None:
    data = kept.wrapped.read_bytes()
    start = data.index(f'"{field}":'.encode())
    for place in (start + 1, start + len(field) + 4):
        flip(kept.wrapped, place)
        with pytest.raises((WrongPassphrase, ObjectDamaged, RepositoryTooNew)):
            open_wrapped_identity(kept.site.spec.open(), PASSPHRASE)
        kept.wrapped.write_bytes(data)


@pytest.mark.parametrize("damage", LENGTHS)
def test_a_wrapped_identity_of_another_length_is_damaged(kept: Kept, damage: Callable[[Path], None]) -> None:
    damage(kept.wrapped)
    with pytest.raises(ObjectDamaged):
        open_wrapped_identity(kept.site.spec.open(), PASSPHRASE)


def test_without_a_wrapped_identity_the_offline_one_is_asked_for(kept: Kept) -> None:
    kept.wrapped.unlink()
    with pytest.raises(IdentityMissing):
        open_wrapped_identity(kept.site.spec.open(), PASSPHRASE)
    assert kept.restores(kept.full)


def test_a_damaged_wrapped_identity_does_not_hide_another(kept: Kept) -> None:
    for name in ("0" * 64, "f" * 64):
        kept.wrapped.with_name(f"{name}.json").write_bytes(b"[" * 100_000)
    assert open_wrapped_identity(kept.site.spec.open(), PASSPHRASE).owner == kept.site.identity.owner


def test_the_wrapped_identity_of_a_thief_opens_nothing_of_ours(kept: Kept) -> None:
    kept.wrapped.write_bytes(Identity.generate().wrap(PASSPHRASE))
    theirs = open_wrapped_identity(kept.site.spec.open(), PASSPHRASE)
    assert isinstance(kept.site.restore_fails(kept.full, identity=theirs), UntrustedSignature)


# Packs


def pack_regions(data: bytes) -> dict[str, range]:
    stanza = 10 + STANZA_SIZE
    (footer,) = struct.unpack_from("<I", data, len(data) - 12)
    end = len(data) - 12
    return {
        "magic": range(8),
        "stanza count": range(8, 10),
        "recipient id": range(10, 26),
        "ephemeral key": range(26, 58),
        "wrapped key": range(58, stanza),
        "frames": range(stanza, end - footer),
        "footer": range(end - footer, end),
        "footer size": range(end, end + 4),
        "end magic": range(end + 4, len(data)),
    }


PACK_REGIONS = ["magic", "stanza count", "recipient id", "ephemeral key", "wrapped key", "frames", "footer"]
PACK_REGIONS += ["footer size", "end magic"]


@pytest.mark.parametrize("region", PACK_REGIONS)
def test_a_pack_with_a_changed_byte_is_found(kept: Kept, region: str) -> None:
    site, data = kept.site, kept.pack.read_bytes()
    for place in places(pack_regions(data)[region]):
        flip(kept.pack, place, 1 << place % 8)
        for header in (kept.full, kept.incremental):
            assert site.restore_fails(header).code == "object-damaged"
        for key in (True, False):
            (finding,) = site.check(key=key).findings
            assert finding.code == "object-damaged"
            assert set(finding.snapshots) == {kept.full.snapshot_id, kept.incremental.snapshot_id}
            assert site.check(key=key, read=False).findings == (), "sizes alone cannot tell"
        kept.pack.write_bytes(data)
    assert kept.restores(kept.full, kept.incremental, kept.other)


def test_many_changed_bytes_anywhere_in_a_pack_are_found_without_a_key(kept: Kept) -> None:
    repository = kept.site.open(key=False)
    (info,) = kept.full.packs
    data = repository.pack_bytes(info)
    rng = random.Random(1)
    for place in [*range(200), *range(len(data) - 200, len(data)), *rng.sample(range(len(data)), 1000)]:
        flipped = bytearray(data)
        flipped[place] ^= rng.randrange(1, 256)
        with pytest.raises(ObjectDamaged):
            check_pack_bytes(info, bytes(flipped))


@pytest.mark.parametrize("damage", [*LENGTHS, Path.unlink])
def test_a_pack_that_is_cut_longer_or_gone_is_found_by_its_size(kept: Kept, damage: Callable[[Path], None]) -> None:
    site = kept.site
    damage(kept.small_pack)
    code = "pack-missing" if damage is Path.unlink else "object-damaged"
    assert site.restore_fails(kept.incremental).code == code
    assert kept.restores(kept.full, kept.other)
    for key in (True, False):
        for read in (True, False):
            (finding,) = site.check(key=key, read=read).findings
            assert (finding.code, finding.snapshots) == (code, (kept.incremental.snapshot_id,))

    # The next run sees it too, and builds on nothing that is damaged.
    events: list[Event] = []
    expected = site.fill(rows=3)
    taken = site.backup("incremental", emit=events.append)
    assert "packs-gone" in [event.code for event in events if isinstance(event, Warned)]
    assert (taken.header.kind, taken.why_full) == ("full", "packs of the last snapshot are missing")
    assert site.restored(taken.header) == expected


def test_swapped_packs_are_found(kept: Kept) -> None:
    swap(kept.pack, kept.small_pack)
    for header in (kept.full, kept.incremental):
        assert kept.site.restore_fails(header).code == "object-damaged"
    for key in (True, False):
        assert codes(kept.site.check(key=key, read=False).findings) == {"object-damaged"}


def test_the_pack_of_another_policy_in_place_of_ours_is_found(kept: Kept) -> None:
    theirs = kept.site.object_path(pack_key(kept.other.packs[0].pack_id)).read_bytes()
    size = kept.small_pack.stat().st_size
    kept.small_pack.write_bytes(theirs[:size])
    assert kept.site.restore_fails(kept.incremental).code == "object-damaged"
    for key in (True, False):
        assert codes(kept.site.check(key=key).findings) == {"object-damaged"}


def test_a_pack_that_no_snapshot_needs_is_told_and_harms_nothing(kept: Kept) -> None:
    stray = kept.site.object_path(f"packs/ab/{'ab' * 32}")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"planted")
    result = kept.site.check()
    assert (result.findings, result.unreferenced) == ((), 1)
    assert kept.restores(kept.full, kept.incremental)
