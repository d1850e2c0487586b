"""Connections of commands to a server."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from avatarforge.client import Client, ServerUnreachable
from avatarforge.client.connection import validate_url
from avatarforge.settings import SettingsError, load_settings

RETRY_TIMEOUT_SECONDS = 60.0
"""For a server that has answered once: about as long as a restart takes."""


class NoServer(ServerUnreachable):
    """No server answers the first request of a command."""

    message = (
        "No AvatarForge answers at {url}. Start one with `avatarforge up`, name another with --url "
        "(or AVATARFORGE_URL), or add --start to `avatarforge forge`."
    )


def resolve_url(url: str | None, options: Mapping[str, str] | None = None) -> str:
    """Return the given URL, or else that of the server that `up` would start here.

    Raises `SettingsError` if the URL is not valid.
    """
    if url is not None:
        try:
            return validate_url(url)
        except ValueError as error:
            raise SettingsError(str(error)) from error
    http = load_settings(environ={**os.environ, **(options or {})}).http
    host = "127.0.0.1" if http.host in ("0.0.0.0", "::") else http.host
    return f"http://{f'[{host}]' if ':' in host else host}:{http.port}"


@contextmanager
def connect(url: str | None, api_key: str | None) -> Iterator[Client]:
    """Open a client of a server that answers. Raises `NoServer` at once if none does."""
    resolved = resolve_url(url)
    require_server(resolved)
    with Client(resolved, api_key=api_key, retry_timeout=RETRY_TIMEOUT_SECONDS) as client:
        yield client


def require_server(url: str) -> None:
    """Send one request. Raises `NoServer` if nothing answers."""
    try:
        with Client(url, timeout=5, retry_timeout=0) as client:
            client.ping()
    except ServerUnreachable as error:
        raise NoServer(url, error.reason) from error
