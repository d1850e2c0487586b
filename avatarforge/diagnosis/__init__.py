"""Does a deployment have what it needs? One check for each thing, each with an advice."""

from avatarforge.diagnosis.examination import examine
from avatarforge.diagnosis.findings import Finding, State

__all__ = ["Finding", "State", "examine"]
