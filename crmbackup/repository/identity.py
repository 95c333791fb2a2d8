"""The identity: one 32-byte seed that opens every backup and owns the repository.

From the seed come, by HKDF-SHA256 with different `info`, the X25519 key that opens objects and the owner's Ed25519
key that signs repository.json. It is kept offline as text, or in the repository wrapped by a passphrase (Argon2id).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.errors import IdentityInvalid, ObjectDamaged, RepositoryTooNew, UsageError, WrongPassphrase

SEED_SIZE = 32
PREFIX = "CRMB1"
_CHECKSUM_SIZE = 3  # with the seed 35 bytes: 56 base32 characters, no padding, 14 groups of four
_GROUP = 4
MIN_PASSPHRASE = 12
# RFC 9106, second recommended option: 64 MiB, 3 passes, 4 lanes. Memory stays far below our limit of 300 MiB.
ARGON2 = {"iterations": 3, "lanes": 4, "memory_cost": 64 * 1024}
_WRAP_CONTEXT = b"crmbackup/1 identity"


class Identity:
    """A seed and the keys made from it. Never prints itself."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            raise IdentityInvalid("an identity has 32 bytes", why=f"got {len(seed)}")
        self._seed = seed

    def __repr__(self) -> str:
        return f"Identity(recipient={self.recipient.hex()[:16]})"

    def __reduce__(self) -> tuple[object, ...]:
        return (Identity, (self._seed,))

    @classmethod
    def generate(cls) -> Identity:
        """A new one from the system's random source."""
        return cls(os.urandom(SEED_SIZE))

    def _derive(self, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(self._seed)

    @cached_property
    def opening_key(self) -> X25519PrivateKey:
        """Opens objects that were sealed to `recipient`."""
        return X25519PrivateKey.from_private_bytes(self._derive(b"crmbackup/1 x25519"))

    @cached_property
    def owner_key(self) -> Ed25519PrivateKey:
        """Signs repository.json."""
        return Ed25519PrivateKey.from_private_bytes(self._derive(b"crmbackup/1 ed25519"))

    @cached_property
    def recipient(self) -> bytes:
        """The X25519 public key, 32 bytes."""
        return self.opening_key.public_key().public_bytes_raw()

    @cached_property
    def owner(self) -> bytes:
        """The Ed25519 public key of the owner, 32 bytes."""
        return self.owner_key.public_key().public_bytes_raw()

    def to_text(self) -> str:
        """The identity as a person writes it down: CRMB1-XXXX-XXXX-... (base32 with a 24-bit checksum)."""
        body = base64.b32encode(self._seed + _checksum(self._seed)).decode("ascii")
        return "-".join([PREFIX, *(body[i : i + _GROUP] for i in range(0, len(body), _GROUP))])

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """Read what a person typed: case, spaces and line ends do not matter; 0, 1 and 8 are read as O, I and B.

        Raises IdentityInvalid.
        """
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        compact = "".join("".join(lines).upper().split()).replace("-", "")
        if not compact.startswith(PREFIX):
            raise IdentityInvalid(
                "this is not an identity",
                why=f"it does not start with {PREFIX}",
                hint="copy it from the recovery sheet",
            )
        body = compact[len(PREFIX) :].translate(str.maketrans("018", "OIB"))
        try:
            raw = base64.b32decode(body)
        except (binascii.Error, ValueError) as error:
            raise IdentityInvalid("the identity cannot be read", why=str(error), hint=_TYPED_WRONG) from error
        seed, checksum = raw[:SEED_SIZE], raw[SEED_SIZE:]
        if len(raw) != SEED_SIZE + _CHECKSUM_SIZE or checksum != _checksum(seed):
            raise IdentityInvalid(
                "the identity's checksum is wrong", why="a character differs or lacks", hint=_TYPED_WRONG
            )
        return cls(seed)

    def wrap(self, passphrase: str) -> bytes:
        """The document keys/<recipient>.json: the seed under a passphrase. Raises UsageError for a short one."""
        if len(passphrase) < MIN_PASSPHRASE:
            raise UsageError(
                "the passphrase is too short",
                why=f"it has fewer than {MIN_PASSPHRASE} characters",
                hint="take five or six random words",
            )
        salt, nonce = os.urandom(16), os.urandom(12)
        key = _stretch(passphrase, salt, ARGON2)
        document: dict[str, object] = {
            "format": 1,
            "recipient": self.recipient.hex(),
            "kdf": {"name": "argon2id", "salt": salt.hex(), **ARGON2},
            "nonce": nonce.hex(),
        }
        sealed = AESGCM(key).encrypt(nonce, self._seed, _WRAP_CONTEXT + canonical_json(document))
        return canonical_json({**document, "sealed": sealed.hex()}) + b"\n"

    @classmethod
    def unwrap(cls, data: bytes, passphrase: str) -> Identity:
        """The inverse of `wrap`. Raises WrongPassphrase, ObjectDamaged, RepositoryTooNew.

        A wrong passphrase and a changed document cannot be told apart by the cipher; the message says both.
        """
        try:
            document: Any = parse_json(data)
            if document["format"] != 1:
                raise RepositoryTooNew("the wrapped identity has a format this version does not know")
            sealed = bytes.fromhex(document.pop("sealed"))
            if data != canonical_json({**document, "sealed": sealed.hex()}) + b"\n":
                raise ValueError("bytes outside its values changed")
            kdf = document["kdf"]
            cost = {name: int(kdf[name]) for name in ARGON2}
            salt, nonce = bytes.fromhex(kdf["salt"]), bytes.fromhex(document["nonce"])
            # A storage thief must not make us spend all memory before the passphrase is even looked at.
            if kdf["name"] != "argon2id" or cost["memory_cost"] > 1024 * 1024 or cost["iterations"] > 64:
                raise ValueError("costs out of range")
            key = _stretch(passphrase, salt, cost)
            seed = AESGCM(key).decrypt(nonce, sealed, _WRAP_CONTEXT + canonical_json(document))
        except InvalidTag as error:
            raise WrongPassphrase(
                "the passphrase does not open the identity",
                why="wrong passphrase, or the wrapped identity was changed",
                hint="try again, or use the offline identity from the recovery sheet",
            ) from error
        except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
            raise ObjectDamaged("the wrapped identity cannot be read", why=str(error)) from error
        identity = cls(seed)
        if identity.recipient.hex() != document["recipient"]:
            raise ObjectDamaged("the wrapped identity is not the one it says it is")
        return identity


_TYPED_WRONG = "compare it with the recovery sheet: 14 groups of four characters after CRMB1"


def _stretch(passphrase: str, salt: bytes, cost: Mapping[str, int]) -> bytes:
    return Argon2id(
        salt=salt,
        length=32,
        iterations=cost["iterations"],
        lanes=cost["lanes"],
        memory_cost=cost["memory_cost"],
    ).derive(passphrase.encode("utf-8"))


def _checksum(seed: bytes) -> bytes:
    return hashlib.sha256(b"crmbackup identity\0" + seed).digest()[:_CHECKSUM_SIZE]
