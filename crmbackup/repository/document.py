"""repository.json: who may open, who may write, signed by the owner."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.clock import from_text, to_text
from crmbackup.core.errors import ObjectDamaged, RepositoryTooNew, UntrustedSignature
from crmbackup.repository.identity import Identity
from crmbackup.repository.signing import REPOSITORY, decode_signed, encode_signed, is_signed

KEY = "repository.json"
FORMAT = 1


@dataclass(frozen=True)
class Recipient:
    """Somebody who can open backups. `public` is an X25519 public key."""

    name: str
    public: bytes


@dataclass(frozen=True)
class Signer:
    """A host that may write snapshots. `public` is an Ed25519 public key."""

    name: str
    public: bytes
    added: datetime


@dataclass(frozen=True)
class RepositoryDocument:
    """The content of repository.json. `sequence` grows with each change, so that an old version is recognised."""

    repository_id: str
    created: datetime
    sequence: int
    owner: bytes
    recipients: tuple[Recipient, ...]
    signers: tuple[Signer, ...]

    @classmethod
    def new(cls, identity: Identity, signer: Signer, now: datetime) -> RepositoryDocument:
        """The first version: one recipient, the owner, and one host."""
        return cls(
            repository_id=os.urandom(16).hex(),
            created=now,
            sequence=1,
            owner=identity.owner,
            recipients=(Recipient("owner", identity.recipient),),
            signers=(signer,),
        )

    @classmethod
    def again(
        cls, repository_id: str, identity: Identity, signer: Signer, sequence: int, now: datetime
    ) -> RepositoryDocument:
        """One in place of one that was lost, with one host: who else was listed is not known from anything trusted."""
        return replace(cls.new(identity, signer, now), repository_id=repository_id, sequence=sequence)

    def with_signer(self, signer: Signer) -> RepositoryDocument:
        """The next version, with one more host."""
        return replace(self, sequence=self.sequence + 1, signers=(*self.signers, signer))

    def trusts(self, public: bytes) -> bool:
        """Whether that Ed25519 public key is one of the signers."""
        return any(signer.public == public for signer in self.signers)

    def signer_name(self, public: bytes) -> str:
        """The name of a signer, or the start of its key when it is not listed."""
        return next((s.name for s in self.signers if s.public == public), f"unknown {public.hex()[:16]}")

    def encode(self, identity: Identity) -> bytes:
        """The signed bytes for storage. `identity` must be the owner's."""
        body = {
            "format": FORMAT,
            "repository_id": self.repository_id,
            "created": to_text(self.created),
            "sequence": self.sequence,
            "owner": self.owner.hex(),
            "recipients": [{"name": r.name, "x25519": r.public.hex()} for r in self.recipients],
            "signers": [{"name": s.name, "ed25519": s.public.hex(), "added": to_text(s.added)} for s in self.signers],
        }
        return encode_signed(REPOSITORY, body, identity.owner_key.sign)

    @classmethod
    def decode(cls, data: bytes, trusted_owner: bytes | None) -> RepositoryDocument:
        """Read and verify. Raises ObjectDamaged, RepositoryTooNew, UntrustedSignature.

        trusted_owner: the owner's public key as known from the identity or pinned at init. None trusts the key that
        the document itself names, which only tells that the document is whole: right for commands without any key.
        """
        try:
            # Before anything else is asked of it: a later format may be signed in another way.
            whole: Any = parse_json(data)
            found = whole["format"]
            if isinstance(found, int) and found > FORMAT:
                raise RepositoryTooNew(
                    f"this repository has format {found}",
                    why=f"this crmbackup knows formats up to {FORMAT}",
                    hint="install a newer crmbackup",
                )
            body, signature = decode_signed(data)
            document = cls(
                repository_id=_hex(body["repository_id"], 16).hex(),
                created=from_text(body["created"]),
                sequence=int(body["sequence"]),
                owner=_hex(body["owner"], 32),
                recipients=tuple(Recipient(str(r["name"]), _hex(r["x25519"], 32)) for r in body["recipients"]),
                signers=tuple(
                    Signer(str(s["name"]), _hex(s["ed25519"], 32), from_text(s["added"])) for s in body["signers"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ObjectDamaged("repository.json cannot be read", why=f"{type(error).__name__}: {error}") from error
        owner = trusted_owner or document.owner
        if document.owner != owner or not is_signed(REPOSITORY + canonical_json(body), signature, owner):
            raise UntrustedSignature(
                "repository.json is not signed by the repository's owner",
                why="it was changed, or replaced by another repository's",
                hint="do not write to it; compare the address with the recovery sheet and look who had access to storage",
            )
        return document


def _hex(text: str, size: int) -> bytes:
    raw = bytes.fromhex(text)
    if len(raw) != size:
        raise ValueError(f"a field of {len(raw)} bytes instead of {size}")
    return raw
