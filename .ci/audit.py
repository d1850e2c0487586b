"""Looks known vulnerabilities of the pinned packages up. Fails for those that it finds.

An advisory service that cannot be reached, or does not know the packages, fails nothing: it is said instead,
since work must go on without a network, and silence would look like a good answer.

    python .ci/audit.py constraints.txt
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMAND = (
    *(sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"),
    *("--timeout", "10", "--format", "json", "--requirement"),
)
AWAY = "requests.exceptions."
"""What the last line of pip-audit's complaint begins with when the service does not answer."""


def main(constraints: Path, command: tuple[str, ...] = COMMAND) -> int:
    run = subprocess.run([*command, str(constraints)], capture_output=True, text=True)
    try:
        report = json.loads(run.stdout)
    except ValueError:
        last = run.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        if last[0].startswith(AWAY):
            print("Dependencies were NOT audited: the advisory service cannot be reached.")
            return 0
        print(f"pip-audit failed: {last[0]}")
        return 1
    return _verdict(report["dependencies"])


def _verdict(dependencies: list[dict[str, Any]]) -> int:
    skipped = [found["name"] for found in dependencies if "skip_reason" in found]
    harmful = [found for found in dependencies if found.get("vulns")]
    for found in harmful:
        for known in found["vulns"]:
            mended = ", ".join(known["fix_versions"]) or "no version yet"
            print(f"{found['name']} {found['version']}: {known['id']}, mended in {mended}")
    audited = len(dependencies) - len(skipped)
    print(
        f"{audited} of {len(dependencies)} dependencies audited, {len(harmful)} with known vulnerabilities."
    )
    if skipped:
        named = ", ".join(skipped[:5]) + (" …" if len(skipped) > 5 else "")
        print(f"NOT audited, since the advisory service does not know them: {named}")
    return 1 if harmful else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
