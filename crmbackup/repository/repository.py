"""The repository: what operations do with packs and manifests in a storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

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
    UntrustedSignature,
    WrongPassphrase,
)
from crmbackup.repository import document as documents
from crmbackup.repository.chunks import PackInfo, pack_key
from crmbackup.repository.document import RepositoryDocument, Signer
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import (
    PREFIX_SIZE,
    ManifestHeader,
    SignedHeader,
    decode_body,
    decode_header,
    encode_manifest,
    header_end,
)
from crmbackup.repository.pack import OpenPack
from crmbackup.repository.signing import REJOIN, HostKey
from crmbackup.storage.base import Storage

#: Read at once from each manifest in a listing: the whole header of a snapshot of some hundred packs.
_LISTING_READ = 16 * 1024


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
                hint="check the address; `crmbackup init POLICY` makes a new one",
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

    def commit(self, header: ManifestHeader, body: Mapping[str, object], reused: Iterable[str] = ()) -> ManifestHeader:
        """Write the manifest: from then on the snapshot exists. Every pack must be in storage already.

        reused: ids of packs that an earlier run wrote; none may be condemned. Raises PackMissing, ObjectExists.
        """
        host_key = self.require_writer()
        header = replace(header, signer=host_key.public.hex())
        doomed = self.condemned().intersection(reused)
        if doomed:
            raise PackMissing(
                "packs that this snapshot reuses are about to be deleted",
                why=f"{len(doomed)} are condemned",
                hint="run the backup again: it will not reuse them",
            )
        self.storage.put(header.key, encode_manifest(header, body, self.recipients, host_key), if_absent=True)
        return header

    def condemned(self) -> set[str]:
        """Ids of packs that garbage collection has marked for deletion."""
        return {info.key.rsplit("/", 1)[1] for info in self.storage.list("condemned/")}

    # Reading

    def packs(self) -> dict[str, int]:
        """Every pack in storage and its size in bytes."""
        return {info.key.rsplit("/", 1)[1]: info.size for info in self.storage.list("packs/")}

    def snapshots(self, policy: str | None = None) -> Snapshots:
        """All complete snapshots of one policy, or of all. Needs no key."""
        headers, problems = [], []
        for key, size in self._manifest_keys(policy):
            try:
                headers.append(self._signed_header(key, size).header)
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
        return decode_body(data, self._trusted(decode_header(data, header.key)), self._identity())

    def check_manifest_bytes(self, header: ManifestHeader) -> int:
        """Verify a manifest without any key: signature, signer and the hash of its body. Gives its size in bytes."""
        import blake3

        data = self._get_manifest(header.key)
        signed = self._trusted(decode_header(data, header.key))
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

    def _manifest_keys(self, policy: str | None) -> Iterator[tuple[str, int]]:
        prefix = "snapshots/" if policy is None else f"snapshots/{policy}/"
        return ((info.key, info.size) for info in self.storage.list(prefix))

    def _signed_header(self, key: str, size: int) -> SignedHeader:
        data = self.storage.get(key, 0, min(size, _LISTING_READ))
        end = header_end(data[:PREFIX_SIZE], key)
        if end > size:
            raise ObjectDamaged(f"manifest {key} is damaged", why="it is cut short")
        if end > len(data):
            data = self.storage.get(key, 0, end)
        signed = self._trusted(decode_header(data, key))
        if signed.object_size != size:
            raise ObjectDamaged(
                f"manifest {key} is damaged", why=f"it has {size} bytes instead of {signed.object_size}"
            )
        return signed

    def _get_manifest(self, key: str) -> bytes:
        try:
            return self.storage.get(key)
        except ObjectNotFound as error:
            raise SnapshotNotFound(f"manifest {key} is not in storage any more") from error

    def _trusted(self, signed: SignedHeader) -> SignedHeader:
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
