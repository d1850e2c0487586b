"""Access control over HTTP: the credentials of a request, and the answer to one that is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatarforge.access.authorizer import Authorizer, Credentials
from avatarforge.access.permissions import Permission, find_route_rule, list_methods
from avatarforge.domain.access import ApiKey
from avatarforge.domain.errors import AvatarForgeError, DatabaseUnavailable, Unauthenticated
from avatarforge.ingress.problems import error_response, http_error_response
from avatarforge.ingress.upload.multipart import drain_unread

API_KEY = "avatarforge.api_key"
"""Under this name a request's ASGI scope has its key."""


def parse_bearer(authorization: str) -> str | None:
    """Return the key in the header or metadata `authorization`."""
    scheme, _, text = authorization.strip().partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


@dataclass(frozen=True, slots=True)
class AuthScheme:
    """How requests carry a key, and how they are told that it is not enough."""

    name: str = "Bearer"
    """Asked for in `WWW-Authenticate`."""
    parse_key: Callable[[str], str | None] = parse_bearer
    """Finds the key in the header `Authorization`."""
    make_response: Callable[[AvatarForgeError, Scope], Response] = error_response


_BEARER = AuthScheme()


class AccessControl:
    """Guards an ASGI application by the table of permissions. A path that is not in it does not exist."""

    def __init__(
        self, app: ASGIApp, authorizer: Authorizer, schemes: Mapping[Permission, AuthScheme]
    ) -> None:
        """`schemes` are those of permissions that do not use bearer tokens and problem documents."""
        self._app = app
        self._authorizer = authorizer
        self._schemes = schemes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._authorizer.required:
            await self._app(scope, receive, send)
            return
        route = find_route_rule(scope["method"], scope["path"])
        permission = Permission.KEY if route is None else route.permission
        scheme = self._schemes.get(permission, _BEARER)
        try:
            credentials = _read_credentials(scope, permission, scheme)
            key = await self._authorizer.authorize(
                permission, None if route is None else route.customer_id, credentials
            )
            if route is None:
                raise _unknown_route(scope)
        except (AvatarForgeError, HTTPException) as error:
            # A client that is still sending would not read the answer.
            await drain_unread(Request(scope, receive).stream(), Headers(scope=scope))
            await _make_response(error, scheme, scope)(scope, receive, send)
            return
        if permission is Permission.STREAM:
            send = self._send_while_valid(key, send)
        scope[API_KEY] = key
        await self._app(scope, receive, send)

    def _send_while_valid(self, key: ApiKey | None, send: Send) -> Send:
        """Wrap `send` so that it ends the stream of a key that was revoked, or cannot be looked up, since."""

        async def send_if_valid(message: Message) -> None:
            try:
                await self._authorizer.check(key)
            except (Unauthenticated, DatabaseUnavailable) as error:
                if message["type"] == "http.response.body":
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise ClientDisconnect from error
            await send(message)

        return send_if_valid


def get_api_key(request: Request) -> ApiKey | None:
    """Return the request's key; `None` where none is needed."""
    key: ApiKey | None = request.scope.get(API_KEY)
    return key


def _read_credentials(scope: Scope, permission: Permission, scheme: AuthScheme) -> Credentials:
    key = scheme.parse_key(Headers(scope=scope).get("authorization", ""))
    query = (
        QueryParams(scope["query_string"]) if permission in (Permission.STREAM, Permission.IMAGE) else None
    )
    return Credentials(key=key, path=scope["path"], query=query)


def _unknown_route(scope: Scope) -> HTTPException:
    is_known = bool(list_methods(scope["path"]))
    return HTTPException(HTTPStatus.METHOD_NOT_ALLOWED if is_known else HTTPStatus.NOT_FOUND)


def _make_response(error: AvatarForgeError | HTTPException, scheme: AuthScheme, scope: Scope) -> Response:
    if isinstance(error, HTTPException):
        return http_error_response(error, scope)
    response = scheme.make_response(error, scope)
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = f'{scheme.name} realm="avatarforge"'
    return response
