"""What this host writes into its audit log, and how loud it is when it cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping

from crmbackup.cli.render import TextShow
from crmbackup.core.audit import AuditLog
from crmbackup.core.errors import LocalError
from crmbackup.core.events import Emit, Warned


class Auditor:
    """The audit log for one process. emit: who hears that it could not be written; run_id: of the run at hand."""

    def __init__(self, log: AuditLog, host: str, operator: str | None, purpose: str) -> None:
        """purpose: what this process is for, such as "restore"."""
        self.log = log
        self.purpose = purpose
        self.emit: Emit = TextShow(verbose=False).event
        self.run_id = _new_id()
        self._run_begun = False
        self._made_in = os.getpid()  # runs in forked processes have ids of their own
        self._host = host
        self._operator = operator

    def new_run(self) -> str:
        """The id of a run that begins. The first one takes that of the process: what was noted before belongs to it."""
        if self._run_begun or os.getpid() != self._made_in:
            self.run_id = _new_id()
        self._run_begun = True
        return self.run_id

    def record(self, event: str, policy: str | None, data: Mapping[str, object], *, required: bool = False) -> None:
        """Add a line, durably. data: no secrets; what canonical JSON can hold.

        A log that cannot be written is a warning, because a restore in an emergency must not wait for it. required:
        raise LocalError instead, for what can wait, such as deletions.
        """
        try:
            self.log.append(event, data, policy=policy, run=self.run_id, operator=self._operator, host=self._host)
        except LocalError as error:
            if required:
                raise
            text = f"THE AUDIT LOG LACKS THIS: {event}: {error}"
            self.emit(Warned("audit-failed", text, error.hint or "write it down elsewhere"))

    @property
    def head(self) -> str:
        """Number and hash of the last line, as messages note it; empty without one."""
        noted = self.log.noted()
        return str(noted) if noted else ""


def _new_id() -> str:
    return os.urandom(8).hex()
