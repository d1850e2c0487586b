"""What every process of the application does first."""

from avatarforge.settings import Settings
from avatarforge.telemetry import logs, traces
from avatarforge.telemetry.masking import secrets_of


def begin(settings: Settings, component: str) -> None:
    """Log and trace as the settings say. `component` names this kind of process, such as `ingress`.

    Raises `SettingsError` where traces are wished for and cannot be made.
    """
    logs.configure(settings.log, secrets_of(settings))
    traces.configure(settings.telemetry, component)
