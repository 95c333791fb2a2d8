"""The log of runs: one more listener for the events of operations. Lines are whole, rotation is for others."""

from __future__ import annotations

import json
import logging.handlers
import os
import socket
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from crmbackup.cli.render import printable
from crmbackup.core.clock import Clock, to_text
from crmbackup.core.errors import LocalError
from crmbackup.core.events import Event, Notice, PhaseEnded, Warned
from crmbackup.core.files import local_error

Level = Literal["info", "warning", "error"]
MODE = 0o640
SYSLOG = "/dev/log"
_PRIORITIES: Mapping[Level, str] = {"info": "info", "warning": "warning", "error": "err"}


class Sink(Protocol):
    """Where lines go to."""

    def write(self, level: Level, line: str) -> None:
        """Add a line, given without its end. Raises LocalError."""


class FileSink:
    """A file that is opened anew for each line: whoever rotates it need tell nobody."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, level: Level, line: str) -> None:
        try:
            # Without O_NONBLOCK, a pipe that nobody reads would stop a backup.
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            descriptor = os.open(self._path, flags, MODE)
            try:
                os.write(descriptor, line.encode("utf-8", "backslashreplace") + b"\n")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise local_error(error, f"write the log {self._path}") from error


class SyslogSink:
    """The system's log by its socket: the journal, or a syslog daemon."""

    def __init__(self, address: str = SYSLOG) -> None:
        self._address = address

    def write(self, level: Level, line: str) -> None:
        name = _PRIORITIES[level]
        priority = logging.handlers.SysLogHandler.priority_names[name] | logging.handlers.SysLogHandler.LOG_DAEMON << 3
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as plug:
                plug.setblocking(False)
                plug.connect(self._address)
                data = f"<{priority}>crmbackup[{os.getpid()}]: {line}".encode("utf-8", "backslashreplace")
                plug.send(data)
        except OSError as error:
            raise local_error(error, f"log to {self._address}") from error


class RunLog:
    """The lines of one run. A log that cannot be written to is said once, by `warn`, and then left alone."""

    def __init__(
        self,
        sinks: list[Sink],
        form: Literal["text", "json"],
        fields: Mapping[str, str],
        clock: Clock,
        warn: Callable[[Warned], None],
    ) -> None:
        """fields: what is on every line: run, policy, action."""
        self._sinks = sinks
        self._json = form == "json"
        self._fields = dict(fields)
        self._clock = clock
        self._warn = warn

    def event(self, event: Event) -> None:
        """A listener for operations. Progress is no news for a log."""
        if isinstance(event, Warned):
            self.line("warning", "warning", event.text, code=event.code, **({"hint": event.hint} if event.hint else {}))
        elif isinstance(event, Notice):
            self.line("info", "notice", event.text, **event.data)
        elif isinstance(event, PhaseEnded):
            self.line(
                "info", "phase", f"{event.phase} took {event.seconds:.1f} s", phase=event.phase, seconds=event.seconds
            )

    def line(self, level: Level, kind: str, text: str, **data: object) -> None:
        """Add a line to all sinks."""
        if not self._sinks:
            return
        moment = self._clock.now()
        line = (
            self._as_json(moment, level, kind, text, data) if self._json else self._as_text(moment, level, text, data)
        )
        for sink in list(self._sinks):
            try:
                sink.write(level, line)
            except LocalError as error:
                self._sinks.remove(sink)
                self._warn(Warned("log-failed", str(error), error.hint))

    def _as_json(self, moment: datetime, level: Level, kind: str, text: str, data: Mapping[str, Any]) -> str:
        fields = {"time": to_text(moment), "level": level, "type": kind, **self._fields, "text": text}
        return json.dumps({**data, **fields}, ensure_ascii=False, default=str)

    def _as_text(self, moment: datetime, level: Level, text: str, data: Mapping[str, Any]) -> str:
        who = " ".join(f"{name}={value}" for name, value in self._fields.items())
        code = f"{data['code']}: " if "code" in data else ""
        hint = f" (hint: {data['hint']})" if data.get("hint") else ""
        return f"{moment:%Y-%m-%dT%H:%M:%SZ} {level:<7} {who} {printable(code + text + hint)}"
