"""Ed25519 signatures of hosts and owners, each over a domain prefix so that no signature fits elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.errors import HostKeyMissing

SIGNATURE_SIZE = 64
REPOSITORY = b"crmbackup/1 repository\0"
MANIFEST = b"crmbackup/1 manifest\0"
PIN = b"crmbackup/1 pin\0"
DRILL = b"crmbackup/1 drill\0"

#: An Ed25519 public key, and what signs with its private half.
SigningKey = tuple[bytes, Callable[[bytes], bytes]]


class HostKey:
    """The key with which one host signs. It opens nothing: a stolen host cannot read backups."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> HostKey:
        """A new one from the system's random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_text(cls, text: str) -> HostKey:
        """Read the content of a host key file. Raises HostKeyMissing."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(text.strip())))
        except ValueError as error:
            raise HostKeyMissing("the host key file cannot be read", why=str(error), hint=REJOIN) from error

    def to_text(self) -> str:
        """The content of a host key file."""
        return self._private.private_bytes_raw().hex() + "\n"

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes, which is also the signer's name in manifests."""
        return self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of a message that starts with one of the domain prefixes."""
        return self._private.sign(message)


REJOIN = "run `crmbackup init POLICY --join` with the identity to let this host write again"


def is_signed(message: bytes, signature: bytes, public: bytes) -> bool:
    """Whether the signature of the message is by that public key."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def encode_signed(domain: bytes, body: Mapping[str, object], sign: Callable[[bytes], bytes]) -> bytes:
    """A small document: its canonical JSON with `signature`, and a line feed."""
    return canonical_json({**body, "signature": sign(domain + canonical_json(body)).hex()}) + b"\n"


def decode_signed(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The values and the signature of a small document, not verified.

    Raises ValueError for bytes that are not just what `encode_signed` writes for these values.
    """
    document = parse_json(data)
    body: dict[str, Any] = document if isinstance(document, dict) else {}
    signature = bytes.fromhex(str(body.pop("signature", None)))
    if data != canonical_json({**body, "signature": signature.hex()}) + b"\n":
        raise ValueError("bytes outside its values changed")
    return body, signature
