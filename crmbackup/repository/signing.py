"""Ed25519 signatures of hosts and owners, each over a domain prefix so that no signature fits elsewhere."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from crmbackup.core.errors import HostKeyMissing

SIGNATURE_SIZE = 64
REPOSITORY = b"crmbackup/1 repository\0"
MANIFEST = b"crmbackup/1 manifest\0"
REPORT = b"crmbackup drill report 1\0"


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
