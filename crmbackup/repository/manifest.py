"""Manifests: the signed objects whose appearance is the commit.

    "CRMBMF01" | header size u32 | header | signature (64) | sealed body

The header is canonical JSON, readable by anyone: enough for snapshots, status, prune, copy and keyless check. The
signature is the host's Ed25519 over "crmbackup/1 manifest" NUL header. The header holds the BLAKE3 and size of the
sealed body, so that the signature covers both, yet a listing need not read bodies. The sealed body is
stanzas | AES-256-GCM (nonce zero, associated data = "crmbackup/1 manifest body " + snapshot id) over Zstandard over
JSON: names of tables, counts, checksums, the chunk table.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import blake3
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.clock import from_text, to_text
from crmbackup.core.errors import ObjectDamaged, RepositoryTooNew
from crmbackup.repository.chunks import PackInfo, decompressor
from crmbackup.repository.identity import Identity
from crmbackup.repository.packs import PackList
from crmbackup.repository.sealing import new_data_key, stanzas_size, unwrap, wrap
from crmbackup.repository.signing import MANIFEST, SIGNATURE_SIZE, HostKey, is_signed

MAGIC = b"CRMBMF01"
#: Where they lie.
SNAPSHOTS = "snapshots/"
FORMAT = 1
WRAP_CONTEXT = b"crmbackup/1 manifest"
BODY_CONTEXT = b"crmbackup/1 manifest body "
BODY_LEVEL = 9  # bodies are small and kept for years
#: Bodies are compressed as if they had no more bytes than this: the tables for more take 11 MiB and bring nothing.
_BODY_WINDOW = 256 * 1024
_SIZE = struct.Struct("<I")
PREFIX_SIZE = len(MAGIC) + _SIZE.size
_ZERO_NONCE = bytes(12)


@dataclass(frozen=True)
class ManifestHeader:
    """What anyone may know of a snapshot.

    kind: "full" or "incremental". generation: the id of the full snapshot it goes back to. captured: the moment whose
    content it holds. source_size: bytes of the database. added_size: bytes of the packs written for it. packs: every
    pack that it needs. signer: the host's Ed25519 public key in hex.
    """

    repository_id: str
    snapshot_id: str
    policy: str
    kind: str
    parent: str | None
    generation: str
    engine: str
    host: str
    tool: str
    started: datetime
    captured: datetime
    finished: datetime
    source_size: int
    added_size: int
    packs: Sequence[PackInfo]
    signer: str

    @property
    def key(self) -> str:
        """The storage key: sorted by policy, then by time."""
        return f"{SNAPSHOTS}{self.policy}/{self.captured.astimezone(UTC):%Y%m%dT%H%M%SZ}-{self.snapshot_id}"

    @property
    def stored_size(self) -> int:
        """Bytes of all packs that the snapshot needs."""
        return sum(pack.size for pack in self.packs)


_TIMES = ("started", "captured", "finished")


def encode_manifest(
    header: ManifestHeader, body: Mapping[str, object], recipients: Sequence[bytes], host_key: HostKey
) -> bytes:
    """The bytes of a manifest."""
    data_key = new_data_key()
    sealed = wrap(data_key, recipients, WRAP_CONTEXT) + AESGCM(data_key).encrypt(
        _ZERO_NONCE, _compress(_encode(body)), BODY_CONTEXT + header.snapshot_id.encode("ascii")
    )
    fields = dict(vars(header))
    fields.update({name: to_text(fields[name]) for name in _TIMES})
    fields["packs"] = [[pack.pack_id, pack.size] for pack in header.packs]
    head = canonical_json(
        {**fields, "format": FORMAT, "sealed_size": len(sealed), "sealed_blake3": blake3.blake3(sealed).hexdigest()}
    )
    return MAGIC + _SIZE.pack(len(head)) + head + host_key.sign(MANIFEST + head) + sealed


def _encode(body: Mapping[str, object]) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _compress(plain: bytes) -> bytes:
    size = min(len(plain), _BODY_WINDOW)
    parameters = zstandard.ZstdCompressionParameters.from_level(BODY_LEVEL, source_size=size)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(plain)


@dataclass(frozen=True)
class SignedHeader:
    """A header whose signature is right; whether its signer is trusted is for the repository to say."""

    header: ManifestHeader
    sealed_offset: int
    sealed_size: int
    sealed_blake3: str

    @property
    def object_size(self) -> int:
        """Bytes of the whole manifest object."""
        return self.sealed_offset + self.sealed_size


def header_end(prefix: bytes, key: str) -> int:
    """From the first PREFIX_SIZE bytes: where header and signature end. Raises ObjectDamaged, RepositoryTooNew."""
    if len(prefix) < PREFIX_SIZE or prefix[:6] != MAGIC[:6]:
        raise ObjectDamaged(f"manifest {key} is damaged", why="it does not begin as a manifest does")
    if prefix[6 : len(MAGIC)] != MAGIC[6:]:
        raise _too_new(key, prefix[6 : len(MAGIC)].decode("ascii", "replace"))
    return PREFIX_SIZE + int(_SIZE.unpack_from(prefix, len(MAGIC))[0]) + SIGNATURE_SIZE


def decode_header(data: bytes, key: str) -> SignedHeader:
    """Read header and signature from the start of the manifest at that key. Raises ObjectDamaged, RepositoryTooNew."""
    return require_place(read_header(data, key), key)


def require_place(signed: SignedHeader, key: str) -> SignedHeader:
    """The header itself when its manifest belongs at that key. Raises ObjectDamaged."""
    if signed.header.key != key:
        raise ObjectDamaged(f"manifest {key} is not the one of that name", why=f"it belongs at {signed.header.key}")
    return signed


def read_header(data: bytes, key: str) -> SignedHeader:
    """The same for a manifest that may lie at a wrong key: its header is what its signer wrote, no more is known."""
    end = header_end(data[:PREFIX_SIZE], key)
    if len(data) < end:
        raise ObjectDamaged(f"manifest {key} is damaged", why="it is cut short")
    head, signature = data[PREFIX_SIZE : end - SIGNATURE_SIZE], data[end - SIGNATURE_SIZE : end]
    try:
        fields: Any = parse_json(head)
        if isinstance(fields["format"], int) and fields.pop("format") > FORMAT:
            raise _too_new(key, "header")
        sealed_size, sealed_blake3 = int(fields.pop("sealed_size")), str(fields.pop("sealed_blake3"))
        fields.update({name: from_text(fields[name]) for name in _TIMES})
        names, sizes = zip(*fields["packs"], strict=True) if fields["packs"] else ((), ())
        fields["packs"] = PackList(names, sizes)
        header = ManifestHeader(**fields)
        signer = bytes.fromhex(header.signer)
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"manifest {key} is damaged", why=f"its header cannot be read ({error})") from error
    if not is_signed(MANIFEST + head, signature, signer):
        raise ObjectDamaged(f"manifest {key} is damaged", why="its signature does not fit its header")
    return SignedHeader(header, end, sealed_size, sealed_blake3)


def decode_body(data: bytes, signed: SignedHeader, identity: Identity) -> dict[str, Any]:
    """Verify and open the sealed body. `data` is the whole object. Raises ObjectDamaged, NotARecipient."""
    key = signed.header.key
    sealed = memoryview(data)[signed.sealed_offset :]
    if len(sealed) != signed.sealed_size or blake3.blake3(sealed).hexdigest() != signed.sealed_blake3:
        raise ObjectDamaged(f"manifest {key} is damaged", why="its sealed body is not the one that was signed")
    stanzas = stanzas_size(sealed, 0)
    data_key = unwrap(sealed[:stanzas], identity.opening_key, WRAP_CONTEXT)
    context = BODY_CONTEXT + signed.header.snapshot_id.encode("ascii")
    try:
        # A text of many MiB for a large database: none of its forms stays longer than the next one needs it.
        plain = decompressor().decompress(AESGCM(data_key).decrypt(_ZERO_NONCE, sealed[stanzas:], context))
        text = plain.decode("utf-8")
        del plain
        body = json.loads(text)
    except (InvalidTag, ValueError) as error:
        raise ObjectDamaged(f"manifest {key} is damaged", why="its body does not open") from error
    if not isinstance(body, dict):
        raise ObjectDamaged(f"manifest {key} is damaged", why="its body is not what a manifest holds")
    return body


def _too_new(key: str, what: str) -> RepositoryTooNew:
    return RepositoryTooNew(
        f"manifest {key} has a newer format",
        why=f"{what}; this crmbackup knows formats up to {FORMAT}",
        hint="install a newer crmbackup",
    )
