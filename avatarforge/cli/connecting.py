"""How commands reach a server."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from avatarforge.client import Client, ServerUnreachable
from avatarforge.client.connection import checked_url
from avatarforge.settings import SettingsError, load_settings

PATIENCE_SECONDS = 60.0
"""How long a server that has answered once may be away: about as long as it takes to start again."""


class NobodyThere(ServerUnreachable):
    """No server answers the first call of a command."""

    def __str__(self) -> str:
        return (
            f"No AvatarForge answers at {self.url}. Start one with `avatarforge up`, name another with --url "
            "(or AVATARFORGE_URL), or add --start to `avatarforge forge`."
        )


def server_url(url: str | None, options: Mapping[str, str] | None = None) -> str:
    """The server that is meant: the one that is named, or the one that `up` would start here.

    Raises `SettingsError` for a URL that is none.
    """
    if url is not None:
        try:
            return checked_url(url)
        except ValueError as error:
            raise SettingsError(str(error)) from error
    http = load_settings(environ={**os.environ, **(options or {})}).http
    host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host
    return f"http://{f'[{host}]' if ':' in host else host}:{http.port}"


@contextmanager
def connected(url: str | None, api_key: str | None) -> Iterator[Client]:
    """A client of a server that answers. Raises `NobodyThere` at once where none does."""
    meant = server_url(url)
    check_there(meant)
    with Client(meant, api_key=api_key, patience=PATIENCE_SECONDS) as client:
        yield client


def check_there(url: str) -> None:
    """Raises `NobodyThere`."""
    try:
        with Client(url, timeout=5, patience=0) as client:
            client.check()
    except ServerUnreachable as error:
        raise NobodyThere(url, error.reason) from error
