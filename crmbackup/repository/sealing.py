"""Data keys and how they reach the recipients of an object.

Every sealed object has a random 32-byte data key. For each recipient the object carries one stanza of `STANZA_SIZE`
bytes: recipient id (16) | ephemeral X25519 public key (32) | wrapped data key (48). The wrapping key is
HKDF-SHA256(X25519(ephemeral, recipient), salt = ephemeral || recipient, info = context), used once, with AES-256-GCM
under a zero nonce: the construction of age's X25519 recipients (C2SP/age), with AES-GCM for ChaCha20-Poly1305 since
OpenSSL runs it in hardware.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable

import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from crmbackup.core.errors import NotARecipient, ObjectDamaged

KEY_SIZE = 32
TAG_SIZE = 16
RECIPIENT_ID_SIZE = 16
STANZA_SIZE = RECIPIENT_ID_SIZE + 32 + KEY_SIZE + TAG_SIZE
_ZERO_NONCE = bytes(12)
_COUNT = struct.Struct("<H")


def recipient_id(public_key: bytes) -> bytes:
    """The 16 bytes by which a stanza names its recipient."""
    return blake3.blake3(public_key).digest(length=RECIPIENT_ID_SIZE)


def new_data_key() -> bytes:
    """32 random bytes."""
    return os.urandom(KEY_SIZE)


def wrap(data_key: bytes, recipients: Iterable[bytes], context: bytes) -> bytes:
    """The stanzas of an object: a count (u16, little endian), then one stanza for each X25519 public key."""
    stanzas = []
    for public_key in recipients:
        ephemeral = X25519PrivateKey.generate()
        ephemeral_public = ephemeral.public_key().public_bytes_raw()
        shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key))
        wrapping_key = _wrapping_key(shared, ephemeral_public, public_key, context)
        wrapped = AESGCM(wrapping_key).encrypt(_ZERO_NONCE, data_key, context)
        stanzas.append(recipient_id(public_key) + ephemeral_public + wrapped)
    return _COUNT.pack(len(stanzas)) + b"".join(stanzas)


def stanzas_size(data: bytes | memoryview, offset: int) -> int:
    """How many bytes the stanzas at `offset` take, count included. Raises ObjectDamaged."""
    if len(data) < offset + _COUNT.size:
        raise ObjectDamaged("a sealed object ends within its header")
    size = _COUNT.size + int(_COUNT.unpack_from(data, offset)[0]) * STANZA_SIZE
    if len(data) < offset + size:
        raise ObjectDamaged("a sealed object ends within its list of recipients")
    return size


def unwrap(stanzas: bytes | memoryview, private_key: X25519PrivateKey, context: bytes) -> bytes:
    """The data key of an object for one recipient. Raises NotARecipient, or ObjectDamaged for a changed stanza."""
    public_key = private_key.public_key().public_bytes_raw()
    wanted = recipient_id(public_key)
    for start in range(_COUNT.size, len(stanzas), STANZA_SIZE):
        stanza = bytes(stanzas[start : start + STANZA_SIZE])
        if stanza[:RECIPIENT_ID_SIZE] != wanted:
            continue
        ephemeral_public = stanza[RECIPIENT_ID_SIZE : RECIPIENT_ID_SIZE + 32]
        try:
            shared = private_key.exchange(X25519PublicKey.from_public_bytes(ephemeral_public))
            wrapping_key = _wrapping_key(shared, ephemeral_public, public_key, context)
            return AESGCM(wrapping_key).decrypt(_ZERO_NONCE, stanza[RECIPIENT_ID_SIZE + 32 :], context)
        except (InvalidTag, ValueError) as error:
            raise ObjectDamaged("the wrapped key of a sealed object does not open", why="its bytes changed") from error
    raise NotARecipient(
        "this identity cannot open the object",
        why="the object was encrypted to other recipients",
        hint="use the identity printed on this repository's recovery sheet",
    )


def _wrapping_key(shared: bytes, ephemeral_public: bytes, public_key: bytes, context: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_SIZE, salt=ephemeral_public + public_key, info=context).derive(shared)
