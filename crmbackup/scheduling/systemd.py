"""systemd units: a service that runs what is due, and the timer that starts it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from crmbackup.policy.model import Policy
from crmbackup.scheduling.wake import Wake
from crmbackup.storage.address import LocalAddress

SERVICE, TIMER = "crmbackup.service", "crmbackup.timer"
_HEAD = "# Written by `crmbackup schedule install --systemd`, which replaces this file. Own settings: `systemctl edit`."
_PLAIN = re.compile(r"[A-Za-z0-9_./=-]+")
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - they are compared with, not written to

# What is left to root: reading what others own, giving files to them, and becoming another user for a private server.
_CAPABILITIES = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_KILL CAP_SETGID CAP_SETUID"

# Left out on purpose: RemoveIPC, which would take a PostgreSQL server's shared memory away where both run as one user; and
# MemoryDenyWriteExecute, which PostgreSQL's compiler for queries does not survive in drills.
_SERVICE = """\
{head}
[Unit]
Description=crmbackup: run what is due
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=oneshot
ExecStart={command}
WorkingDirectory={directory}
{identity}\
# The main process tells the others to stop and waits until they have cleaned up.
KillMode=mixed
TimeoutStopSec=10min
Nice=10
IOSchedulingPriority=7
UMask=0077

# Nothing can be written but what stands here.
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp={private_tmp}
{writable}\
NoNewPrivileges=yes
CapabilityBoundingSet={capabilities}
LockPersonality=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
# AF_NETLINK: how addresses of hosts are looked up.
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
"""

_TIMER = """\
{head}
[Unit]
Description=Wake crmbackup to run what is due

[Timer]
OnCalendar={calendar}
# After the machine was off, at once.
Persistent=yes
AccuracySec=1s
# Not all hosts ask the storage in the same second.
RandomizedDelaySec=20s

[Install]
WantedBy=timers.target
"""


def service(wake: Wake, policies: Iterable[Policy], own: Iterable[Path]) -> str:
    """The service unit. own: crmbackup's own directories, which must be there when the service starts."""
    policies = list(policies)
    paths = [path for policy in policies for path in _written(policy)]
    sockets = [path for policy in policies for path in _sockets(policy)]
    everything = [*own, *paths, *sockets]
    # A private /tmp would hide what lies in the real one.
    temporary = any(path.is_relative_to(place) for path in everything for place in _TEMPORARY)
    # With a dash: one that is not there is no reason not to start, and then the run says what is wrong.
    lines = [*(str(path) for path in own), *(f"-{path}" for path in paths)]
    if temporary:
        lines += [f"-{place}" for place in _TEMPORARY]
    program, *arguments = wake.arguments
    return _SERVICE.format(
        head=f"{_HEAD}\n{wake.scope}",
        command=" ".join([_quoted(program), *(_quoted(word, argument=True) for word in arguments)]),
        directory=_quoted(str(wake.directory), bare=True),
        identity="".join(
            [
                f"User={_quoted(wake.user, bare=True)}\n" if wake.user else "",
                *(f"Environment={_quoted(f'{name}={value}')}\n" for name, value in sorted(wake.environment.items())),
            ]
        ),
        private_tmp="no" if temporary else "yes",
        writable="".join(f"ReadWritePaths={_quoted(line)}\n" for line in dict.fromkeys(lines)),
        capabilities=_CAPABILITIES,
    )


def timer(wake: Wake) -> str:
    """The timer unit."""
    every = len(wake.minutes) == 60
    minutes = "*" if every else ",".join(f"{minute:02}" for minute in wake.minutes)
    return _TIMER.format(head=_HEAD, calendar=f"*:{minutes}")


def _written(policy: Policy) -> list[Path]:
    """Directories that runs of a policy write to, crmbackup's own apart."""
    found: list[Path] = []
    if policy.source.type == "sqlite":
        # Readers lock the database and its WAL index, which lie where a link leads to.
        found += [policy.source.path.parent, policy.source.path.resolve().parent]
    address = policy.repository.address()
    if isinstance(address, LocalAddress):
        found.append(address.path)
    found += [path for path in (policy.drill.directory, policy.drill.reports) if path]
    if policy.log and policy.log.path:
        found.append(policy.log.path.parent)
    if policy.notify.metrics:
        found.append(policy.notify.metrics.textfile.parent)  # it is replaced, beside itself
    url = policy.catalog.url if policy.catalog else None
    if isinstance(url, str) and url.startswith("sqlite:////"):
        found.append(Path(url.removeprefix("sqlite:///")).parent)
    return found


def _sockets(policy: Policy) -> list[Path]:
    """Directories of the sockets of local servers, as far as the policy names them."""
    urls = [getattr(policy.source, "url", ""), policy.drill.target]
    hosts = [host for url in urls for host in parse_qs(urlsplit(url).query).get("host", [])]
    return [Path(host) for host in hosts if host.startswith("/")]


def _quoted(text: str, *, argument: bool = False, bare: bool = False) -> str:
    """A value for a unit file: % is a specifier there, and $ a variable in arguments. bare: a setting that takes no quotes."""
    text = text.replace("%", "%%")
    if argument:
        text = text.replace("$", "$$")
    if bare or _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
