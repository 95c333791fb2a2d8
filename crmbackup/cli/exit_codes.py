"""From errors to exit codes: the one place. README.md holds the table for users."""

from __future__ import annotations

from crmbackup.core import errors

OK = 0
INTERNAL = 1
#: Whoever read our output has gone, as `head` does: 128 and the number of SIGPIPE, as shells say it.
CLOSED_PIPE = 141

EXIT_CODES: dict[type[errors.CrmBackupError], int] = {
    errors.CrmBackupError: INTERNAL,
    errors.UsageError: 2,
    errors.SourceError: 3,
    errors.StorageError: 4,
    errors.RepositoryError: 5,
    errors.IntegrityError: 5,
    errors.KeyProblem: 6,
    errors.VerificationFailed: 7,
    errors.ObjectivesMissed: 8,
    errors.LocalError: 9,
    errors.RepositoryMissing: 10,
    errors.Locked: 11,
    errors.WrongPassphrase: 12,
    errors.TargetError: 13,
    errors.AttentionNeeded: 14,
    errors.Interrupted: 130,
}


def exit_code(error: errors.CrmBackupError) -> int:
    """The exit code for an error: that of the closest family."""
    return next(EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES)
