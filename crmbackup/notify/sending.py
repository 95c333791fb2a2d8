"""Sending messages and pings: in a process of its own, which can be ended at any moment.

A library that waits for ever, prints passwords or crashes does so there. What is to be sent, with its secrets, goes
through a pipe: no command line and no file holds it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO

from crmbackup.core.clock import Clock
from crmbackup.core.secrets import Secret

#: Beyond its own limit the process is given this long to say what became of everything.
_GRACE_SECONDS = 1.0


@dataclass(frozen=True)
class Delivery:
    """One thing to send. name: for messages, such as "notify.apprise[0]". kind: "apprise" or "ping".

    body: None for a ping without one. tone: as Apprise calls it: info, success, warning or failure.
    """

    name: str
    kind: str
    url: Secret
    title: str = ""
    body: str | None = None
    tone: str = "info"

    def job(self) -> dict[str, object]:
        """With the secret in the open."""
        return {**asdict(self), "url": self.url.reveal()}


class Sending:
    """Deliveries on their way. Start with `send`; `results` or `abandon` must follow."""

    def __init__(self, process: subprocess.Popen[bytes], names: Sequence[str], clock: Clock, deadline: float) -> None:
        self._process = process
        self._names = names
        self._clock = clock
        self._deadline = deadline

    def results(self, within: float | None = None) -> list[str]:
        """For each delivery, in order, why it did not arrive, or an empty text. Waits as long as `send` was told.

        within: not longer than this many seconds from now.
        """
        deadline = self._deadline
        if within is not None:
            deadline = min(deadline, self._clock.monotonic() + within)
        found: dict[int, str] = {}
        try:
            text = self._read(deadline)
        finally:
            self.abandon()
        for line in text.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                fields = json.loads(line)
                found[int(fields["index"])] = str(fields["why"])
        late = (
            "it was not sent in time"
            if self._clock.monotonic() >= deadline
            else "the process that sends it ended early"
        )
        return [found.get(index, late) for index in range(len(self._names))]

    def _read(self, deadline: float) -> bytes:
        stream = self._output
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while (left := deadline - self._clock.monotonic()) > 0:
                if selector.select(left):
                    data = os.read(stream.fileno(), 65536)
                    if not data:
                        break
                    text += data
        return text

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def abandon(self) -> None:
        """End the process, whatever it has done so far."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._output.close()


def send(deliveries: Sequence[Delivery], environ: Mapping[str, str], seconds: float, clock: Clock) -> Sending:
    """Begin to send everything at the same time, trying again where that may help, for at most `seconds`.

    Raises OSError when no process can be started.
    """
    jobs = {"seconds": seconds, "jobs": [delivery.job() for delivery in deliveries]}
    process = subprocess.Popen(
        # -P: not what lies in the directory that we happen to be in.
        [sys.executable, "-P", "-m", "crmbackup.notify.sender"],
        env=dict(environ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    sending = Sending(
        process, [delivery.name for delivery in deliveries], clock, clock.monotonic() + seconds + _GRACE_SECONDS
    )
    assert process.stdin is not None
    try:
        # Less than a pipe holds, or read at once by the other side.
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(jobs).encode("utf-8"))
    except BaseException:
        sending.abandon()
        raise
    return sending
