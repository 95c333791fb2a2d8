"""The repository: what operations do with packs and manifests in a storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from crmbackup.core.clock import Clock, Stopwatch
from crmbackup.core.errors import (
    CrmBackupError,
    HostKeyMissing,
    IdentityMissing,
    ObjectDamaged,
    ObjectExists,
    ObjectNotFound,
    PackMissing,
    RepositoryError,
    RepositoryExists,
    RepositoryMissing,
    SnapshotNotFound,
    StorageError,
    StorageUnavailable,
    UntrustedSignature,
    WrongPassphrase,
)
from crmbackup.repository import document as documents
from crmbackup.repository.chunks import PACKS, PackInfo, pack_key
from crmbackup.repository.document import RepositoryDocument, Signer
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import (
    PREFIX_SIZE,
    SNAPSHOTS,
    ManifestHeader,
    SignedHeader,
    decode_body,
    decode_header,
    encode_manifest,
    header_end,
    read_header,
    require_place,
)
from crmbackup.repository.marks import list_marks
from crmbackup.repository.pack import OpenPack
from crmbackup.repository.packs import StoredPacks
from crmbackup.repository.signing import REJOIN, HostKey
from crmbackup.storage.base import Storage

#: Read at once from each manifest in a listing: the whole header of a snapshot of some hundred packs.
_LISTING_READ = 16 * 1024
#: A manifest whose packs were looked for longer ago than this, in seconds, is not put any more. With the time that a
#: put may be under way it must stay far below the least grace period of a collector.
COMMIT_SECONDS: Final = 1800.0
_GONE = "this host knows one there: mount its disk, or bring repository.json back; `crmbackup init POLICY --join` remakes it"


@dataclass(frozen=True)
class Pin:
    """What a host remembers of a repository outside of it, so that a thief of the storage cannot replace it."""

    repository_id: str
    owner: bytes
    sequence: int


@dataclass(frozen=True)
class Snapshots:
    """A listing: complete, trusted snapshots in order of capture, and what is wrong with the other manifests."""

    headers: tuple[ManifestHeader, ...]
    problems: tuple[RepositoryError, ...]


class Repository:
    """A repository whose repository.json was read and verified.

    Opening snapshots needs `identity`; writing them needs `host_key`.
    """

    def __init__(
        self,
        storage: Storage,
        document: RepositoryDocument,
        *,
        identity: Identity | None = None,
        host_key: HostKey | None = None,
    ) -> None:
        self.storage = storage
        self.document = document
        self.identity = identity
        self.host_key = host_key

    @classmethod
    def create(cls, storage: Storage, identity: Identity, host_key: HostKey, host: str, now: datetime) -> Repository:
        """Write repository.json. Raises RepositoryExists when there is one, also when another init wins a race."""
        document = RepositoryDocument.new(identity, Signer(host, host_key.public, now), now)
        try:
            storage.put(documents.KEY, document.encode(identity), if_absent=True)
        except ObjectExists as error:
            raise RepositoryExists(
                f"there is a repository at {storage.location} already",
                hint="to write to it from this host too, run `crmbackup init POLICY --join` with its identity",
            ) from error
        return cls(storage, document, identity=identity, host_key=host_key)

    @classmethod
    def remake(
        cls, storage: Storage, identity: Identity, host_key: HostKey, host: str, pin: Pin, now: datetime
    ) -> Repository:
        """Write repository.json again where it is gone, as far as this host knows it. Raises RepositoryExists."""
        signer, sequence = Signer(host, host_key.public, now), pin.sequence + 1
        document = RepositoryDocument.again(pin.repository_id, identity, signer, sequence, now)
        try:
            storage.put(documents.KEY, document.encode(identity), if_absent=True)
        except ObjectExists as error:
            raise RepositoryExists(f"there is a repository at {storage.location} again", hint="join it") from error
        return cls(storage, document, identity=identity, host_key=host_key)

    @classmethod
    def open(
        cls,
        storage: Storage,
        *,
        identity: Identity | None = None,
        host_key: HostKey | None = None,
        pin: Pin | None = None,
    ) -> Repository:
        """Read and verify repository.json.

        The identity is the root of trust; without one it is what this host pinned; without either only wholeness is
        known. Raises RepositoryMissing, RepositoryTooNew, ObjectDamaged, UntrustedSignature.
        """
        try:
            data = storage.get(documents.KEY)
        except ObjectNotFound as error:
            raise RepositoryMissing(
                f"there is no repository at {storage.location}",
                hint=_GONE if pin else "check the address; `crmbackup init POLICY` makes a new one",
            ) from error
        owner = identity.owner if identity else pin.owner if pin else None
        document = RepositoryDocument.decode(data, owner)
        if pin and (document.repository_id != pin.repository_id or document.sequence < pin.sequence):
            raise UntrustedSignature(
                f"the repository at {storage.location} is not the one this host knows",
                why="it has another id"
                if document.repository_id != pin.repository_id
                else "its list of hosts is an old one",
                hint="find out who replaced repository.json; if it was you, run `crmbackup init POLICY --join`",
            )
        return cls(storage, document, identity=identity, host_key=host_key)

    @property
    def pin(self) -> Pin:
        """What to remember of this repository."""
        return Pin(self.document.repository_id, self.document.owner, self.document.sequence)

    @property
    def recipients(self) -> list[bytes]:
        """The X25519 public keys that every new object is sealed to."""
        return [recipient.public for recipient in self.document.recipients]

    def join(self, host_key: HostKey, host: str, now: datetime) -> None:
        """List one more host as a signer. Needs the identity."""
        identity = self._identity()
        if not self.document.trusts(host_key.public):
            document = self.document.with_signer(Signer(host, host_key.public, now))
            self.storage.put(documents.KEY, document.encode(identity))
            self.document = document
        self.host_key = host_key

    def keep_wrapped_identity(self, passphrase: str) -> None:
        """Store the identity under a passphrase, so that address and passphrase are enough to restore."""
        keep_wrapped_identity(self.storage, self._identity(), passphrase)

    # Writing

    def require_writer(self) -> HostKey:
        """The host key, when this repository trusts it. Raises HostKeyMissing, UntrustedSignature."""
        if self.host_key is None:
            raise HostKeyMissing("this host has no signing key", hint=REJOIN)
        if not self.document.trusts(self.host_key.public):
            raise UntrustedSignature(
                "this host's key is not listed in the repository", why="the owner has not added it", hint=REJOIN
            )
        return self.host_key

    def commit(self, header: ManifestHeader, body: Mapping[str, object], clock: Clock) -> ManifestHeader:
        """Write the manifest: from then on the snapshot exists. Every pack must be in storage already.

        None of its packs may be condemned, be it new or reused; docs/design.md section 8 says why that look is enough.
        Raises PackMissing, ObjectDamaged, ObjectExists, StorageUnavailable.
        """
        host_key = self.require_writer()
        header = replace(header, signer=host_key.public.hex())
        data = encode_manifest(header, body, self.recipients, host_key)
        looked = Stopwatch(clock)
        self.require_kept(header.packs)
        if looked.seconds() > COMMIT_SECONDS:
            raise StorageUnavailable(
                f"cannot commit snapshot {header.snapshot_id}",
                why="looking for its packs took too long, or this machine was suspended",
                hint="run the backup again: what was shipped is reused",
            )
        self.storage.put(header.key, data, if_absent=True)
        if looked.seconds() > COMMIT_SECONDS:
            # Suspended in the very put. A collector may have deleted packs meanwhile without seeing this manifest.
            try:
                self.require_kept(header.packs)
            except RepositoryError:
                with suppress(StorageError):
                    self.storage.delete(header.key)
                raise
        return header

    def require_kept(self, packs: Iterable[PackInfo]) -> None:
        """Every pack is in storage and not condemned. Raises PackMissing, ObjectDamaged."""
        # Marks first: a collector removes a pack before its mark, so what is neither marked now nor gone a moment later
        # was not condemned when this look began.
        condemned = self.condemned()
        stored = self.packs()
        wanted = list(packs)
        doomed = sum(pack.pack_id in condemned for pack in wanted)
        if doomed:
            raise PackMissing(
                "packs of this snapshot are about to be deleted",
                why=f"{doomed} are condemned",
                hint="run the backup again: it will not reuse them. If runs take long, raise prune.grace on the host "
                "that prunes",
            )
        for pack in wanted:
            found = stored.get(pack.pack_id)
            if found is None:
                raise PackMissing(
                    f"pack {pack.pack_id[:16]} of this snapshot is not in storage", hint="run the backup again"
                )
            if found != pack.size:
                raise ObjectDamaged(
                    f"pack {pack.pack_id[:16]} of this snapshot is damaged",
                    why=f"it has {found} bytes instead of {pack.size}",
                    hint="run `crmbackup check`, then the backup again",
                )

    def condemned(self) -> set[str]:
        """Ids of packs that garbage collection has marked for deletion."""
        return {mark.pack_id for mark in list_marks(self.storage)}

    # Reading

    def packs(self) -> StoredPacks:
        """Every pack in storage and its size in bytes."""
        return StoredPacks(self.storage.list(PACKS))

    def snapshots(self, policy: str | None = None) -> Snapshots:
        """All complete snapshots of one policy, or of all. Needs no key."""
        headers, problems = [], []
        for key, size in self.manifest_keys(policy):
            try:
                headers.append(self.signed_header(key, size).header)
            except ObjectNotFound:
                continue  # deleted since it was listed
            except RepositoryError as problem:
                problems.append(problem)
        return Snapshots(tuple(sorted(headers, key=lambda h: (h.captured, h.snapshot_id))), tuple(problems))

    def has_snapshot(self, key: str) -> bool:
        """Whether a manifest lies at that key. Says nothing of its content."""
        try:
            self.storage.stat(key)
        except ObjectNotFound:
            return False
        return True

    def body(self, header: ManifestHeader) -> dict[str, Any]:
        """The opened body of a snapshot. Raises IntegrityError kinds, IdentityMissing, NotARecipient."""
        data = self._get_manifest(header.key)
        return decode_body(data, self.trusted(decode_header(data, header.key)), self._identity())

    def check_manifest_bytes(self, header: ManifestHeader) -> int:
        """Verify a manifest without any key: signature, signer and the hash of its body. Gives its size in bytes."""
        import blake3

        data = self._get_manifest(header.key)
        signed = self.trusted(decode_header(data, header.key))
        if blake3.blake3(data[signed.sealed_offset :]).hexdigest() != signed.sealed_blake3:
            raise ObjectDamaged(
                f"manifest {header.key} is damaged", why="its sealed body is not the one that was signed"
            )
        return len(data)

    def pack_bytes(self, info: PackInfo) -> bytes:
        """A pack as stored, unchecked. Raises PackMissing."""
        try:
            return self.storage.get(pack_key(info.pack_id))
        except ObjectNotFound as error:
            raise PackMissing(
                f"pack {info.pack_id[:16]} is not in storage", hint="`crmbackup check` names the snapshots it touches"
            ) from error

    def open_pack(self, info: PackInfo) -> OpenPack:
        """A pack, verified and ready to read. Raises PackMissing, ObjectDamaged, NotARecipient."""
        return OpenPack(info, self.pack_bytes(info), self._identity().opening_key)

    def _identity(self) -> Identity:
        if self.identity is None:
            raise IdentityMissing(
                "reading backups needs the identity",
                hint="give --identity-file, or a passphrase if the repository keeps a wrapped identity",
            )
        return self.identity

    def manifest_keys(self, policy: str | None) -> Iterator[tuple[str, int]]:
        """Key and size of everything that lies where manifests do."""
        prefix = SNAPSHOTS if policy is None else f"{SNAPSHOTS}{policy}/"
        return ((info.key, info.size) for info in self.storage.list(prefix))

    def signed_header(self, key: str, size: int) -> SignedHeader:
        """One manifest's header, its signature verified. Raises ObjectNotFound, RepositoryError kinds."""
        return self.checked(read_header(self.header_bytes(key, size), key), key, size)

    def checked(self, signed: SignedHeader, key: str, size: int) -> SignedHeader:
        """The header itself when it is a listed host's and that of an object of that key and size.

        Raises ObjectDamaged, UntrustedSignature.
        """
        self.trusted(require_place(signed, key))
        if signed.object_size != size:
            raise ObjectDamaged(
                f"manifest {key} is damaged", why=f"it has {size} bytes instead of {signed.object_size}"
            )
        return signed

    def header_bytes(self, key: str, size: int) -> bytes:
        """The start of a manifest of that size, header and signature included. Raises ObjectDamaged, ObjectNotFound."""
        data = self.storage.get(key, 0, min(size, _LISTING_READ))
        end = header_end(data[:PREFIX_SIZE], key)
        if end > size:
            raise ObjectDamaged(f"manifest {key} is damaged", why="it is cut short")
        return data if end <= len(data) else self.storage.get(key, 0, end)

    def _get_manifest(self, key: str) -> bytes:
        try:
            return self.storage.get(key)
        except ObjectNotFound as error:
            raise SnapshotNotFound(f"manifest {key} is not in storage any more") from error

    def trusted(self, signed: SignedHeader) -> SignedHeader:
        """The header itself when a listed host wrote it for this repository. Raises UntrustedSignature."""
        header = signed.header
        if header.repository_id != self.document.repository_id:
            raise UntrustedSignature(f"manifest {header.key} belongs to another repository")
        if not self.document.trusts(bytes.fromhex(header.signer)):
            raise UntrustedSignature(
                f"manifest {header.key} is signed by an unknown host",
                why=f"its key is {header.signer[:16]}...",
                hint="do not restore it; find out who could write to the storage",
            )
        return signed


def keep_wrapped_identity(storage: Storage, identity: Identity, passphrase: str) -> None:
    """Store an identity under a passphrase. Done before the repository exists, it cannot be lost by a crash in between."""
    storage.put(f"keys/{identity.recipient.hex()}.json", identity.wrap(passphrase))


def open_wrapped_identity(storage: Storage, passphrase: str) -> Identity:
    """The identity that the passphrase opens. Raises IdentityMissing, WrongPassphrase, ObjectDamaged."""
    problem: CrmBackupError | None = None
    for info in storage.list("keys/"):
        try:
            return Identity.unwrap(storage.get(info.key), passphrase)
        except (RepositoryError, WrongPassphrase) as error:
            problem = error
    if problem:
        raise problem
    raise IdentityMissing(
        f"the repository at {storage.location} keeps no wrapped identity",
        hint="give the offline identity from the recovery sheet with --identity-file",
    )


def find_snapshot(headers: Sequence[ManifestHeader], wanted: str, at: datetime | None = None) -> ManifestHeader:
    """One snapshot by id, by the start of its id, or "latest"; with `at`, the latest captured at or before then.

    Raises SnapshotNotFound.
    """
    if at is not None:
        headers = [header for header in headers if header.captured <= at]
    if wanted == "latest":
        if headers:
            return headers[-1]
        raise SnapshotNotFound("there is no complete snapshot" + (" from before that time" if at else ""))
    found = [header for header in headers if header.snapshot_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    why = "several begin so" if found else "none has that id"
    raise SnapshotNotFound(f"no snapshot {wanted!r}", why=why, hint="`crmbackup snapshots` lists them")
