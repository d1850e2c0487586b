"""For all tests: logs and threads as the service has them."""

import os

from avatarforge.settings import LogSettings
from avatarforge.telemetry.logs import configure

# OpenMP reads it when torch is imported, which tests do before the service sets it. Spinning threads take
# the cores from each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# structlog's own printer takes seconds for a traceback.
configure(LogSettings(level="INFO", format="json"))
