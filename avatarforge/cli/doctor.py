"""`avatarforge doctor`: check that this deployment has what it needs."""

import os
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from avatarforge.cli.terminal import ExitCode, err, out
from avatarforge.diagnosis import Finding, State, examine
from avatarforge.serve_config import arguments_of, read_config, validate_config
from avatarforge.settings import load_settings

COLORS = {State.OK: "green", State.ABSENT: "dim", State.WARNING: "yellow", State.FAILED: "bold red"}


def doctor(config: Path | None, gpu: bool | None, options: dict[str, str], as_json: bool) -> None:
    """Print the findings. Exits with 1 if a check failed."""
    content = None if config is None else read_config(config)
    arguments = None if content is None else arguments_of(content)
    settings = load_settings(arguments, environ={**os.environ, **options})
    if content is not None:
        validate_config(content, settings)
    with err.status("Examining …"):
        findings = list(examine(settings, gpu))
    if as_json:
        out.print_json(data=[asdict(finding) for finding in findings])
    else:
        _print_findings(findings)
    if any(finding.state is State.FAILED for finding in findings):
        raise SystemExit(ExitCode.FAILURE)


def _print_findings(findings: list[Finding]) -> None:
    table = Table("Check", "State", "Found")
    table.columns[0].no_wrap = True
    for finding in findings:
        color = COLORS[finding.state]
        found = escape(finding.found)
        if finding.advice:
            found += f"\n[bold]→[/] {escape(finding.advice)}"
        table.add_row(finding.check, f"[{color}]{finding.state}[/]", found)
    out.print(table)
    failures = sum(finding.state is State.FAILED for finding in findings)
    out.print("[green]All checks passed.[/]" if not failures else f"[bold red]{failures} failed.[/]")
