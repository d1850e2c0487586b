"""For all tests: logs as the service writes them. structlog's own printer takes seconds for a traceback."""

from avatarforge.settings import LogSettings
from avatarforge.telemetry.logs import configure

configure(LogSettings(level="INFO", format="json"))
