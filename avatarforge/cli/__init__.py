"""The `avatarforge` command.

Ray, torch and SQLAlchemy take seconds to import: commands import them when they run.
"""

from avatarforge.cli.main import app

__all__ = ["app"]
