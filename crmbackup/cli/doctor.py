"""crmbackup doctor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import output_options, policies_argument
from crmbackup.cli.render import make_show, marked

if TYPE_CHECKING:
    from crmbackup.cli.findings import Finding


@click.command("doctor")
@policies_argument
@output_options
def command(policies: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Look for what would make a backup, a restore or a drill fail, and say what mends it.

    Looks at this host and at the named policies, or at all there are: programs and versions, rights on the source, clock,
    space, keys, the installed schedule, and what the storage lets this host do. It writes one small object to the storage
    and tries to delete it again. Nothing else is changed. The exit code is 14 when something has to be mended;
    warnings alone leave it at 0.
    """
    from crmbackup.cli.findings import examine_host, examine_policy, failed
    from crmbackup.cli.policies import policy_files
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import AttentionNeeded, PolicyNotFound

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        everything: list[Finding] = []
        parts = [("", examine_host(host))]
        try:
            parts += [(path.stem, examine_policy(host, path)) for path in policy_files(host.cwd, policies)]
        except PolicyNotFound as error:
            if policies:
                raise
            parts += [("policies", iter([failed("policy", error)]))]
        for name, found in parts:
            if not as_json:
                click.echo(f"{name or 'This host'}")
            for each in found:
                everything.append(each)
                show.result("finding", {"policy": name or None, **vars(each)}, lambda each=each: _line(each))  # type: ignore[misc]
        counts = Counter(each.level for each in everything)
        data = {level: counts[level] for level in ("ok", "note", "warning", "fail")}
        show.result("doctor", data, lambda: _sum(everything))
        if counts["fail"]:
            number = counts["fail"]
            raise AttentionNeeded(f"{number} {'thing has' if number == 1 else 'things have'} to be mended")


_SIGNS = {"ok": ("ok", "green"), "note": ("--", None), "warning": ("!!", "yellow"), "fail": ("XX", "red")}


def _line(finding: Finding) -> None:
    sign, colour = _SIGNS[finding.level]
    marked(sign, colour, f"{finding.area}: {finding.text}")
    if finding.mend:
        marked("  ", None, f"mend: {finding.mend}")


def _sum(findings: Sequence[Finding]) -> None:
    if all(each.level in ("ok", "note") for each in findings):
        click.echo("Nothing has to be mended")
