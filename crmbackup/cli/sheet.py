"""The recovery sheet: what must lie in a safe so that a new host can restore."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path

from crmbackup.cli.render import printable, when

#: Around a QR code, in modules: readers need it.
QUIET_ZONE = 4
#: Two rows of modules in one line of text, (upper, lower) dark or not: as ink on paper.
BLOCKS = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}
BLACK_ON_WHITE, PLAIN = "\x1b[30;107m", "\x1b[0m"


class Look(Enum):
    """How a QR code is drawn: as ink, with colours of its own, or without any character beyond ASCII."""

    PAPER = "paper"
    TERMINAL = "terminal"
    ASCII = "ascii"


@dataclass(frozen=True)
class Sheet:
    """What it says.

    identity: the text itself, or None where it must not be printed. file: where it was written to; sheet: where this
    sheet is written to, with it; wrapped: whether the repository keeps it under a passphrase.
    """

    policy: str
    address: str
    repository_id: str
    made: datetime
    host: str
    tool: str
    identity: str | None
    file: Path | None
    sheet: Path | None
    wrapped: bool
    engine: str = "sqlite"

    @property
    def kept(self) -> tuple[str, ...]:
        """Where the identity is, in words."""
        return (
            *([f"in the file {self.file} on {self.host}: move it off that machine"] if self.file else []),
            *([f"on the sheet {self.sheet} on {self.host}: print it, then delete it"] if self.sheet else []),
            *(["in the repository, under the passphrase"] if self.wrapped else []),
        )

    def text(self, look: Look = Look.PAPER) -> str:
        """The sheet as lines of text; with the identity also as a QR code."""
        lines = [
            "crmbackup recovery sheet",
            "========================",
            "",
            f"Policy      {self.policy}",
            f"Repository  {self.address}",
            f"Id          {self.repository_id}",
            f"Made        {when(self.made)} on {printable(self.host)} by {self.tool}",
            "",
        ]
        if self.identity:
            lines += [
                "Identity (opens every backup: whoever has it can read them all)",
                "",
                *_folded(self.identity),
                "",
            ]
            lines += [*qr_lines(self.identity, look), ""]
        lines += [f"Identity kept {place}" for place in self.kept]
        lines += ["", *self._commands(), ""]
        if not self.identity:
            lines += ["This sheet does not hold the identity. Write down where it is."]
        lines += ["Keep this sheet away from the CRM and from the storage. Try it once, on another machine."]
        return "\n".join(lines) + "\n"

    def _commands(self) -> list[str]:
        with_file = bool(self.identity or self.file or self.sheet)
        key = "--identity-file identity.txt " if with_file else ""
        lines = [
            "To restore on a bare machine with Python 3.11 or later and a copy of crmbackup's directory:",
            "",
            "  1. python3 -m venv venv && venv/bin/pip install './crmbackup[all]'",
        ]
        if self.identity or (self.sheet and not self.file):
            lines.append("  2. cat > identity.txt     (type or scan the identity, then Ctrl-D)")
        elif self.file:
            lines.append("  2. cp /media/.../identity.txt .     (the file with the identity)")
        if self.address.startswith("s3:"):
            lines.append(f"  {3 if with_file else 2}. export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...")
        number = 2 + with_file + self.address.startswith("s3:")
        target = _TARGETS[self.engine]
        return [
            *lines,
            f"  {number}. venv/bin/crmbackup restore --repository {shlex.quote(self.address)} \\",
            f"       --of {shlex.quote(self.policy)} {key}--to {target}",
            *([] if with_file else ["     (it asks for the passphrase)"]),
        ]


#: What a new host restores to. A new server knows none of the old one's accounts.
_TARGETS = {
    "sqlite": "restored.db",
    "postgres": "postgresql://USER@HOST/NEW --create --roles create",
    "mysql": "mysql://USER@HOST/NEW --create --roles create",
}


def _folded(identity: str) -> list[str]:
    """Five groups a line, which is what an eye can keep in step with a hand."""
    groups = identity.split("-")
    return [
        "    " + "-".join(groups[i : i + 5]) + ("-" if i + 5 < len(groups) else "") for i in range(0, len(groups), 5)
    ]


def qr_lines(text: str, look: Look) -> Sequence[str]:
    """A QR code.

    Its dark modules are ink, as on paper. On a terminal the colours are set, since most write light on dark, and many
    readers do not take an inverted code.
    """
    import segno

    rows = [[bool(module) for module in row] for row in segno.make_qr(text, error="m").matrix_iter(border=QUIET_ZONE)]
    if look is Look.ASCII:
        return ["".join("##" if dark else "  " for dark in row) for row in rows]
    if len(rows) % 2:
        rows.append([False] * len(rows[0]))
    lines = [
        "".join(BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]
    return [f"{BLACK_ON_WHITE}{line}{PLAIN}" for line in lines] if look is Look.TERMINAL else lines
