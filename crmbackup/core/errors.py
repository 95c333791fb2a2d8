"""Every error a user can meet.

Each class is one stable `code`. Messages say what happened and on what; `why` gives the cause, `hint` what to do
next. Families decide the exit code, in one place: `crmbackup.cli.exit_codes`.

    CrmBackupError
      UsageError            the command line or a policy is wrong
        PolicyInvalid, PolicyNotFound
      SourceError           the database that is protected
        SourceMissing, SourceEmpty, SourceNotADatabase, SourceUnavailable, SourceDenied
        SourceLocked, SourceUnreadable, SourceChanged, SourceShrank
      StorageError          the place where objects are kept
        StorageUnavailable, StorageDenied, StorageFull, StorageMisconfigured, ObjectNotFound, ObjectExists
      RepositoryError       what is kept there
        RepositoryMissing, RepositoryExists, RepositoryTooNew, SnapshotNotFound, TooMuchToDelete
        IntegrityError      bytes that are not what was written, or not by whom it should have been
          ObjectDamaged, PackMissing, UntrustedSignature
      KeyProblem             secrets
        WrongPassphrase, IdentityMissing, IdentityInvalid, NotARecipient, HostKeyMissing, SecretUnavailable
      LocalError            this machine
        TargetExists, DiskFull, LocalDenied, ProgramMissing, HookFailed, NotifyFailed
      TargetError           the database server that is restored to
        TargetUnavailable, TargetDenied
      Locked                another run holds the lock
      VerificationFailed    a drill or check found a difference
      ObjectivesMissed      a drill's data is right, but later or older than the policy allows
      AttentionNeeded       a look at how things stand found something to mend
      Interrupted           a signal asked us to stop
"""

from __future__ import annotations

from typing import ClassVar


class CrmBackupError(Exception):
    """Something a user can understand and act on.

    Args:
        what: what happened and on what, one sentence without a full stop.
        why: the cause, when known.
        hint: what to do next.
    """

    code: ClassVar[str] = "error"
    #: Whether the same call may succeed when it is made again a little later.
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what, why, hint)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments would be lost on the way back from a worker process.
        return (_rebuild, (type(self), self.what, self.why, self.hint))


def _rebuild(kind: type[CrmBackupError], what: str, why: str, hint: str) -> CrmBackupError:
    return kind(what, why=why, hint=hint)


class UsageError(CrmBackupError):
    """The command line asks for something that cannot be."""

    code = "usage"


class PolicyInvalid(UsageError):
    """A policy file has errors; the message lists all of them."""

    code = "policy-invalid"


class PolicyNotFound(UsageError):
    """No policy file of that name or path."""

    code = "policy-not-found"


class SourceError(CrmBackupError):
    """The database that is protected cannot be backed up as asked."""

    code = "source"


class SourceMissing(SourceError):
    """The database does not exist."""

    code = "source-missing"


class SourceEmpty(SourceError):
    """The database holds nothing: no pages, or no tables."""

    code = "source-empty"


class SourceNotADatabase(SourceError):
    """The file is not a database of the engine that the policy names."""

    code = "source-not-a-database"


class SourceUnavailable(SourceError):
    """The server of the database cannot be reached, or the connection was cut."""

    code = "source-unavailable"
    retryable = True


class SourceDenied(SourceError):
    """The database server refuses the user, or a right is missing."""

    code = "source-denied"


class SourceLocked(SourceError):
    """Another process holds the database for longer than the policy lets us wait."""

    code = "source-locked"
    retryable = True


class SourceUnreadable(SourceError):
    """A part of the database cannot be read: rights, damage or hardware."""

    code = "source-unreadable"


class SourceChanged(SourceError):
    """The database changed under a snapshot in a way that breaks its consistency."""

    code = "source-changed"
    retryable = True


class SourceShrank(SourceError):
    """The database holds sharply less than its last snapshot."""

    code = "source-shrank"


class StorageError(CrmBackupError):
    """The object storage does not do what it should."""

    code = "storage"


class StorageUnavailable(StorageError):
    """No answer, a server error, a broken connection or a short read; trying again may help."""

    code = "storage-unavailable"
    retryable = True


class StorageDenied(StorageError):
    """The storage refuses these credentials or this operation."""

    code = "storage-denied"


class StorageFull(StorageError):
    """The storage has no room."""

    code = "storage-full"


class StorageMisconfigured(StorageError):
    """The address or options of the storage make no sense to it: no such bucket, wrong region, wrong scheme."""

    code = "storage-misconfigured"


class ObjectNotFound(StorageError):
    """There is no object with that key."""

    code = "object-not-found"


class ObjectExists(StorageError):
    """An object with that key is there already and must not be replaced."""

    code = "object-exists"


class RepositoryError(CrmBackupError):
    """The repository cannot be used as asked."""

    code = "repository"


class RepositoryMissing(RepositoryError):
    """There is no repository at that address."""

    code = "repository-missing"


class RepositoryExists(RepositoryError):
    """There is a repository at that address already."""

    code = "repository-exists"


class RepositoryTooNew(RepositoryError):
    """The repository or snapshot was written in a format this version does not know."""

    code = "repository-too-new"


class SnapshotNotFound(RepositoryError):
    """No complete snapshot matches what was asked for."""

    code = "snapshot-not-found"


class TooMuchToDelete(RepositoryError):
    """Garbage collection would delete more than one run may."""

    code = "too-much-to-delete"


class IntegrityError(RepositoryError):
    """Bytes in the repository are not what was written, or not by whom they should have been."""

    code = "integrity"


class ObjectDamaged(IntegrityError):
    """An object is truncated, changed, swapped or replayed."""

    code = "object-damaged"


class PackMissing(IntegrityError):
    """A snapshot needs a pack that is not in storage."""

    code = "pack-missing"


class UntrustedSignature(IntegrityError):
    """A signature is wrong, or its signer is not one that the owner listed."""

    code = "untrusted-signature"


class KeyProblem(CrmBackupError):
    """A secret is missing or does not fit."""

    code = "key"


class WrongPassphrase(KeyProblem):
    """The passphrase does not open this identity."""

    code = "wrong-passphrase"


class IdentityMissing(KeyProblem):
    """Reading needs an identity and none was given."""

    code = "identity-missing"


class IdentityInvalid(KeyProblem):
    """The text is not an identity: mistyped, cut short or of another kind."""

    code = "identity-invalid"


class NotARecipient(KeyProblem):
    """The identity is not one the object was encrypted to."""

    code = "not-a-recipient"


class HostKeyMissing(KeyProblem):
    """The host has no signing key that the repository trusts."""

    code = "host-key-missing"


class SecretUnavailable(KeyProblem):
    """A secret that the policy refers to cannot be had: unset variable, absent file, failed command."""

    code = "secret-unavailable"


class LocalError(CrmBackupError):
    """The machine we run on stands in the way."""

    code = "local"


class TargetExists(LocalError):
    """Something is there already and would be overwritten."""

    code = "target-exists"


class DiskFull(LocalError):
    """A local disk has no room."""

    code = "disk-full"


class LocalDenied(LocalError):
    """A local file or directory cannot be read or written."""

    code = "local-denied"


class ProgramMissing(LocalError):
    """A program that is needed is not installed, or has the wrong version."""

    code = "program-missing"


class HookFailed(LocalError):
    """A program of the policy's hooks failed, or took too long."""

    code = "hook-failed"


class NotifyFailed(LocalError):
    """A message, a ping or the metrics did not get where they should."""

    code = "notify-failed"


class TargetError(CrmBackupError):
    """The database server that is restored to does not take something."""

    code = "target"


class TargetUnavailable(TargetError):
    """The server that is restored to cannot be reached, or the connection was cut."""

    code = "target-unavailable"


class TargetDenied(TargetError):
    """The server that is restored to refuses the user, or a right is missing."""

    code = "target-denied"


class Locked(CrmBackupError):
    """Another run of the same policy is at work."""

    code = "locked"
    retryable = True


class VerificationFailed(CrmBackupError):
    """What was restored or read is not what was backed up."""

    code = "verification-failed"


class ObjectivesMissed(CrmBackupError):
    """The data is right, but the recovery took longer, or lost more, than the policy's objectives allow."""

    code = "objectives-missed"


class AttentionNeeded(CrmBackupError):
    """Something that was looked at is not as it should be."""

    code = "attention"


class Interrupted(CrmBackupError):
    """A signal asked the run to stop."""

    code = "interrupted"
