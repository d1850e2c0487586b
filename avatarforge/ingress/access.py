"""Access control over HTTP: what a request shows, and the answer to one that is not let in."""

import base64
import binascii
from http import HTTPStatus

from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avatarforge.access.gate import Gate, Shown
from avatarforge.access.rules import Rule, methods_of, rule_of
from avatarforge.domain.access import ApiKey
from avatarforge.domain.errors import AvatarForgeError, DatabaseUnavailable, Unauthenticated
from avatarforge.ingress.problems import error_response, http_error_response
from avatarforge.ingress.sdapi.messages import Refusal
from avatarforge.ingress.uploads import announced_length, drain

KEY = "avatarforge.api_key"
"""Where the key that a request came with lies in its ASGI scope."""


class AccessControl:
    """Guards an ASGI application by the table of rules. A path that is not in it is not there."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._gate.required:
            await self._app(scope, receive, send)
            return
        ruled = rule_of(scope["method"], scope["path"])
        rule = Rule.KEY if ruled is None else ruled.rule
        try:
            shown = _shown(scope, rule)
            key = await self._gate.admit(rule, None if ruled is None else ruled.customer_id, shown)
            if ruled is None:
                raise _no_rule(scope)
        except (AvatarForgeError, HTTPException) as error:
            # A client that is still sending would not read the answer.
            await drain(Request(scope, receive).stream(), announced_length(Headers(scope=scope)))
            await _refusal(error, rule, scope)(scope, receive, send)
            return
        if rule is Rule.STREAM:
            send = self._while_valid(key, send)
        scope[KEY] = key
        await self._app(scope, receive, send)

    def _while_valid(self, key: ApiKey | None, send: Send) -> Send:
        """Ends the stream of a key that was revoked meanwhile, or of which nobody can tell any more whether
        it was: nothing is sent to it."""

        async def checked(message: Message) -> None:
            try:
                await self._gate.check(key)
            except (Unauthenticated, DatabaseUnavailable) as error:
                if message["type"] == "http.response.body":
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                raise ClientDisconnect from error
            await send(message)

        return checked


def key_of(request: Request) -> ApiKey | None:
    """The key that the request came with; `None` where none is needed."""
    key: ApiKey | None = request.scope.get(KEY)
    return key


def bearer_of(authorization: str) -> str | None:
    """The key in the header or metadata `authorization`."""
    scheme, _, text = authorization.strip().partition(" ")
    return text.strip() if scheme.lower() == "bearer" else None


def _shown(scope: Scope, rule: Rule) -> Shown:
    authorization = Headers(scope=scope).get("authorization", "")
    key = bearer_of(authorization)
    if key is None and rule is Rule.SDAPI:
        key = _password_of(authorization)
    may_do_without = rule in (Rule.STREAM, Rule.IMAGE)
    query = QueryParams(scope["query_string"]) if may_do_without else None
    return Shown(key=key, path=scope["path"], query=query)


def _password_of(authorization: str) -> str | None:
    """The password of HTTP basic authentication; the name does not matter."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(text.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return None


def _no_rule(scope: Scope) -> HTTPException:
    allowed = sorted(set(methods_of(scope["path"])))
    if allowed:
        return HTTPException(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": ", ".join(allowed)})
    return HTTPException(HTTPStatus.NOT_FOUND)


def _refusal(error: AvatarForgeError | HTTPException, rule: Rule, scope: Scope) -> Response:
    if isinstance(error, HTTPException):
        return http_error_response(error, scope)
    response = error_response(error, scope)
    if rule is Rule.SDAPI:
        headers = {name: response.headers[name] for name in ("Retry-After",) if name in response.headers}
        refusal = Refusal.of(error)
        response = JSONResponse(dict(refusal.body), refusal.status, headers)
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        scheme = "Basic" if rule is Rule.SDAPI else "Bearer"
        response.headers["WWW-Authenticate"] = f'{scheme} realm="avatarforge"'
    return response
