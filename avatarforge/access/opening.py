"""Whether keys are needed, and a gate for an ingress replica."""

from datetime import UTC, datetime

import structlog

from avatarforge.access.gate import Gate
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.persistence.api_keys import ApiKeyRecords
from avatarforge.settings import Settings, SettingsError

log = structlog.get_logger(__name__)


class NoApiKeys(SettingsError):
    """Keys are needed, and there is none: nobody could come in."""

    def __str__(self) -> str:
        return (
            "The service needs API keys here, since it may be reached from elsewhere, but there is no valid "
            "one. Make one with `avatarforge keys create NAME --all-customers --admin`, listen on 127.0.0.1 "
            "only, or let everybody in with `avatarforge up --insecure` (AVATARFORGE_ACCESS_REQUIRED=never)."
        )


def opened_gate(settings: Settings, records: ApiKeyRecords) -> Gate:
    """The gate of an ingress replica.

    Here `auto` means that keys are needed: only `avatarforge up` knows for whom a server listens, and says
    so to its replicas. Blocks. Raises `NoApiKeys`.
    """
    required = settings.access.required != "never"
    if required:
        try:
            check_keys(records)
        except DatabaseUnavailable as error:
            # A replica that starts during an outage answers 503 until it can read the keys.
            log.warning("API keys could not be read", reason=error.reason)
    else:
        log.warning("no API keys are asked for")
    return Gate(settings.access, records, required=required)


def check_keys(records: ApiKeyRecords) -> None:
    """Raises `NoApiKeys` where nobody could come in, and `DatabaseUnavailable`."""
    if not records.has_valid(datetime.now(UTC)):
        raise NoApiKeys
