"""The OpenAPI description beyond the routes that FastAPI reads, and the pages that show it."""

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from avatarforge.access.permissions import CUSTOMER_PARAMETER, HTTP, Permission
from avatarforge.domain import errors
from avatarforge.domain.errors import AvatarForgeError
from avatarforge.ingress.problems import MEDIA_TYPE, problem_type_of
from avatarforge.ingress.rest.responses import Problem
from avatarforge.ingress.upload.form import describe_form
from avatarforge.messages import PUBLIC_PREFIX
from avatarforge.rest_messages import StreamErased, StreamOverflow, StreamProgress, StreamSnapshot

ASSETS = "/docs/assets"

# Addresses are relative, for those who reach us below a path of a proxy's.
# Without a line of script in the page itself, so that the page's policy need not allow any.
_DOCS = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AvatarForge: the interface</title>
<link rel="icon" href="{ASSETS[1:]}/favicon.png">
<link rel="stylesheet" href="{ASSETS[1:]}/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="{ASSETS[1:]}/swagger-ui-bundle.js"></script>
<script src="docs/setup.js"></script>
</html>
"""
# The validator is somebody else's server.
_SETUP = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  validatorUrl: null,
  tryItOutEnabled: true,
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
KEY_SCHEME = "key"
_SCHEMAS = "#/components/schemas/"
PROBLEM = f"{_SCHEMAS}Problem"
STREAM_EVENT = f"{_SCHEMAS}StreamEvent"

UPLOAD = {"required": True, "content": {"multipart/form-data": {"schema": describe_form()}}}
"""The body of an upload, which is read as a stream."""


_FORM = describe_form()
PHOTO_ALONE = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": {**_FORM, "properties": {"photo": _FORM["properties"]["photo"]}}}
    },
}
"""The body of an upload that is only looked at."""


def describe_headers(**names: str) -> dict[str, Any]:
    """Document response headers: names with `_` for `-`, and what they tell."""
    return {
        name.replace("_", "-"): {"description": text, "schema": {"type": "string"}}
        for name, text in names.items()
    }


_IMAGE_HEADERS = describe_headers(
    ETag="Of these bytes, for `If-None-Match` and `If-Range`.",
    Last_Modified="When the image was made.",
    Content_Disposition="`inline`, or `attachment` with `download=true`, and a file name.",
    Accept_Ranges="`bytes`: parts may be asked for with `Range`.",
)
_IMAGE_CONTENT = {
    f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("jpeg", "png", "webp")
}
IMAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The image.", "headers": _IMAGE_HEADERS, "content": _IMAGE_CONTENT},
    206: {
        "description": "The part that `Range` asks for.",
        "headers": {**_IMAGE_HEADERS, **describe_headers(Content_Range="Which bytes of how many.")},
        "content": _IMAGE_CONTENT,
    },
    302: {
        "description": "The image is at the signed URL in `Location`.",
        "headers": describe_headers(Location="Where the image is for a while."),
    },
    304: {"description": "The client has the image: `If-None-Match` names its `ETag`."},
    416: {
        "description": "The image has no such part.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM}}},
    },
}

ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "headers": describe_headers(
            Location="The address of the job's status.",
            Idempotent_Replayed="`true` where the key was known: the answer is the first one's job.",
        )
    }
}

TAGS = {
    "photos": "Upload photos, and follow what becomes of them.",
    "images": "The photo and the avatar.",
    "customers": "Whose photos they are.",
    "webhooks": "The ends of jobs, told to receivers.",
    "access": "What lets browsers in where they cannot send a key.",
    "models": "What avatars are made with.",
    "health": "What supervisors ask.",
}

_ERROR_HEADERS: dict[int, dict[str, Any]] = {
    401: describe_headers(WWW_Authenticate="How to send a key."),
    429: describe_headers(Retry_After="Seconds after which to try again."),
    503: describe_headers(Retry_After="Seconds after which to try again."),
}


def error_responses(*kinds: type[AvatarForgeError]) -> dict[int | str, dict[str, Any]]:
    """Document the errors as responses, one for each HTTP status."""
    by_status: dict[int | str, list[type[AvatarForgeError]]] = {}
    for kind in kinds:
        by_status.setdefault(problem_type_of(kind).http_status, []).append(kind)
    documented = {
        status: document_problem(" ".join(f"`{kind.code}`: {kind.__doc__}" for kind in group))
        for status, group in by_status.items()
    }
    for status, headers in _ERROR_HEADERS.items():
        if status in documented:
            documented[status]["headers"] = headers
    return documented


def document_problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM}}}}


COMMON_ERROR_RESPONSES = error_responses(
    errors.Unauthenticated,
    errors.Forbidden,
    errors.ForeignSite,
    errors.RateLimited,
    errors.DatabaseUnavailable,
)
"""Errors of every call that needs a key, which is looked up in the database."""
_CUSTOMER_ERROR_RESPONSES = error_responses(errors.InvalidCustomerId)
"""Errors of every call that names a customer."""


def add_documentation(api: FastAPI) -> None:
    """Add `/openapi.json` and `/docs`. All that a browser loads for them is served from here."""

    def describe() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = get_openapi(
                title=api.title,
                version=api.version,
                description=api.description,
                routes=api.routes,
                tags=[{"name": name, "description": text} for name, text in TAGS.items()],
                servers=_describe_server(""),
                contact={"name": "Whoever runs this server"},
                license_info={"name": "Apache 2.0", "identifier": "Apache-2.0"},
            )
            _simplify_parameters(document)
            _add_events(document)
            _add_webhooks(document)
            api.openapi_schema = _add_security(_replace_validation_errors(document))
        return api.openapi_schema

    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS)

    async def setup() -> Response:
        return Response(_SETUP, media_type="text/javascript")

    async def show(request: Request) -> Response:
        return JSONResponse({**describe(), "servers": _describe_server(PUBLIC_PREFIX.get())})

    api.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    api.add_api_route("/openapi.json", show, include_in_schema=False)
    api.mount(ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))
    api.add_api_route("/docs", docs, include_in_schema=False)
    api.add_api_route("/docs/setup.js", setup, include_in_schema=False)


def _describe_server(prefix: str) -> list[dict[str, Any]]:
    return [{"url": prefix or "/", "description": "Where this document comes from."}]


def _simplify_parameters(document: dict[str, Any]) -> None:
    """Say that a parameter may be left out once: not also that it may be null, which no URL can hold."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                choices = parameter["schema"].pop("anyOf", [])
                for choice in choices:
                    parameter["schema"] |= choice if choice != {"type": "null"} else {}
                parameter["schema"].pop("title", None)


def _add_events(document: dict[str, Any]) -> None:
    """Describe the data of server-sent events."""
    schemas = document["components"]["schemas"]
    for kind in (StreamSnapshot, StreamProgress, StreamErased, StreamOverflow):
        schema = kind.model_json_schema(mode="serialization", ref_template=f"{_SCHEMAS}{{model}}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
    schemas["StreamEvent"] = {
        "description": "The data of an event: `snapshot` or `reset`, `status`, `progress`, `erased`, "
        "`overflow`.",
        "anyOf": [
            {"$ref": f"{_SCHEMAS}{name}"}
            for name in (
                "StreamSnapshot",
                "ProfilePhotoJobStatus",
                "StreamProgress",
                "StreamErased",
                "StreamOverflow",
            )
        ],
    }


def _add_webhooks(document: dict[str, Any]) -> None:
    """Describe the call of a receiver, after Standard Webhooks."""
    names = {
        "webhook-id": "The delivery's id, the same in every attempt.",
        "webhook-timestamp": "When it was sent, in seconds since 1970.",
        "webhook-signature": "Signatures of the id, the time and the body, with each secret.",
    }
    document["webhooks"] = {
        "jobEnded": {
            "post": {
                "operationId": "jobEnded",
                "tags": ["webhooks"],
                "summary": "A job has ended",
                "description": "Sent to an upload's `callbackUrl`, and again until it is answered 2xx.",
                "parameters": [
                    {"name": name, "in": "header", "required": True, "description": text}
                    | {"schema": {"type": "string"}}
                    for name, text in names.items()
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}ProfilePhotoJobStatus"}}},
                },
                "responses": {
                    "200": {"description": "The receiver has it."},
                    "410": {"description": "The receiver wants no more of this."},
                },
                "security": [],
            }
        }
    }


def _replace_validation_errors(document: dict[str, Any]) -> dict[str, Any]:
    """Put our errors in place of those that FastAPI documents."""
    schemas = document["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _add_security(document: dict[str, Any]) -> dict[str, Any]:
    """The description with what the table of rules asks for, and how a refusal is told."""
    document["components"]["securitySchemes"] = {
        KEY_SCHEME: {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key (`avatarforge keys create`). A server that only its own machine "
            "reaches asks for none.",
        }
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if HTTP.get(path, {}).get(method.upper()) is Permission.PUBLIC:
                operation["security"] = []
                operation["responses"] |= {
                    str(status): refusal for status, refusal in error_responses(errors.ForeignSite).items()
                }
                continue
            operation["security"] = [{KEY_SCHEME: []}, {}]
            customer_errors = _CUSTOMER_ERROR_RESPONSES if CUSTOMER_PARAMETER in path else {}
            for status, common in (COMMON_ERROR_RESPONSES | customer_errors).items():
                own = operation["responses"].get(str(status))
                description = (
                    common["description"] if own is None else f"{own['description']} {common['description']}"
                )
                operation["responses"][str(status)] = {**common, "description": description}
    return document
