"""What the OpenAPI description says beyond what FastAPI reads from the routes, and the pages that show it."""

from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from avatarforge.access.rules import HTTP, Rule
from avatarforge.domain import errors
from avatarforge.domain.errors import AvatarForgeError
from avatarforge.domain.jobs import ImageFormat
from avatarforge.ingress import submissions
from avatarforge.ingress.problems import MEDIA_TYPE, answer_to
from avatarforge.ingress.schemas import Problem

ASSETS = "/docs/assets"

# Without a line of script in the page itself, so that the page's policy need not allow any.
_DOCS = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AvatarForge: the interface</title>
<link rel="icon" href="{ASSETS}/favicon.png">
<link rel="stylesheet" href="{ASSETS}/swagger-ui.css">
<div id="swagger-ui"></div>
<script src="{ASSETS}/swagger-ui-bundle.js"></script>
<script src="/docs/setup.js"></script>
</html>
"""
# The validator is somebody else's server.
_SETUP = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  validatorUrl: null,
  tryItOutEnabled: true,
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
KEY_SCHEME = "key"
PROBLEM = "#/components/schemas/Problem"

_BY_DEFAULT = "By default as `GET /models` says."

UPLOAD: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["photo"],
                "additionalProperties": False,
                "properties": {
                    "photo": {
                        "type": "string",
                        "format": "binary",
                        "description": "The photo: JPEG, PNG, WebP or GIF.",
                    },
                    "prompt": {
                        "type": "string",
                        "maxLength": submissions.MAX_PROMPT,
                        "description": "What the avatar should show.",
                    },
                    "negativePrompt": {
                        "type": "string",
                        "maxLength": submissions.MAX_PROMPT,
                        "description": "What it should not show.",
                    },
                    "style": {"type": "string", "description": "One of `GET /styles`."},
                    "strength": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "maximum": 1,
                        "description": "How far the avatar may go from the photo. " + _BY_DEFAULT,
                    },
                    "steps": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": submissions.MAX_STEPS,
                        "description": "Steps of the whole schedule, of which only the last ones are "
                        "made: `strength` says what share. " + _BY_DEFAULT,
                    },
                    "guidance": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": submissions.MAX_GUIDANCE,
                        "description": "How closely to follow the prompt. " + _BY_DEFAULT,
                    },
                    "seed": {
                        "type": "integer",
                        "format": "int64",
                        "minimum": 0,
                        "maximum": submissions.MAX_SEED,
                        "description": "The same seed makes the same avatar; by default a random one.",
                    },
                    "format": {
                        "type": "string",
                        "enum": list(ImageFormat),
                        "default": ImageFormat.PNG,
                        "description": "The avatar's file format.",
                    },
                    "priority": {
                        "type": "integer",
                        "minimum": -submissions.MAX_PRIORITY,
                        "maximum": submissions.MAX_PRIORITY,
                        "default": 0,
                        "description": "Higher goes first.",
                    },
                    "timeoutSeconds": {
                        "type": "number",
                        "minimum": 1,
                        "maximum": submissions.MAX_TIMEOUT,
                        "description": "The job fails with the code `deadline_exceeded` unless it has ended "
                        "so many seconds after its upload; by default it has all the time it needs.",
                    },
                    "startTimeoutSeconds": {
                        "type": "number",
                        "minimum": 1,
                        "maximum": submissions.MAX_TIMEOUT,
                        "description": "As `timeoutSeconds`, unless the job has been started by then.",
                    },
                    "allowRemote": {
                        "type": "boolean",
                        "default": True,
                        "description": "Whether the photo may go to another server where this one uses one.",
                    },
                    "cutFace": {
                        "type": "boolean",
                        "default": True,
                        "description": "Whether a square around the face is cut out of the photo. With "
                        "`false` a square photo is taken as it is.",
                    },
                    "callbackUrl": {
                        "type": "string",
                        "format": "uri",
                        "maxLength": submissions.MAX_CALLBACK_URL,
                        "description": "Where the job's end is told by a webhook: an absolute http or https "
                        "URL.",
                    },
                },
            }
        }
    },
}
"""The body of an upload. Written by hand, since the body is read as a stream."""

IMAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The image.",
        "content": {
            f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
            for kind in ("jpeg", "png", "webp")
        },
    },
    302: {"description": "The image is at the signed URL in `Location`."},
    304: {"description": "The client has the image: `If-None-Match` names its `ETag`."},
}


def told(*kinds: type[AvatarForgeError]) -> dict[int | str, dict[str, Any]]:
    """The errors as documented answers, one for each HTTP status."""
    by_status: dict[int | str, list[type[AvatarForgeError]]] = {}
    for kind in kinds:
        by_status.setdefault(answer_to(kind).http, []).append(kind)
    return {
        status: problem_answer(" ".join(f"`{kind.code}`: {kind.__doc__}" for kind in group))
        for status, group in by_status.items()
    }


def problem_answer(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM}}}}


REFUSALS = told(
    errors.Unauthenticated,
    errors.Forbidden,
    errors.ForeignSite,
    errors.RateLimited,
    errors.DatabaseUnavailable,
)
"""What every call may answer that needs a key, which is looked up in the database."""


def add_documentation(api: FastAPI) -> None:
    """`/openapi.json` and `/docs`. All that a browser loads for them is served from here."""

    def described() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = get_openapi(
                title=api.title,
                version=api.version,
                description=api.description,
                routes=api.routes,
            )
            api.openapi_schema = _with_keys(_with_our_problems(document))
        return api.openapi_schema

    async def docs() -> HTMLResponse:
        return HTMLResponse(_DOCS)

    async def setup() -> Response:
        return Response(_SETUP, media_type="text/javascript")

    api.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    api.mount(ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))
    api.add_api_route("/docs", docs, include_in_schema=False)
    api.add_api_route("/docs/setup.js", setup, include_in_schema=False)


def _with_our_problems(document: dict[str, Any]) -> dict[str, Any]:
    """The description with our errors in place of those that FastAPI believes in."""
    schemas = document["components"]["schemas"]
    schemas["Problem"] = Problem.model_json_schema()
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document


def _both(own: dict[str, Any], refusal: dict[str, Any]) -> dict[str, Any]:
    """The call's own answer of a status, which also tells what any call may answer with it."""
    if refusal["description"] in own["description"]:
        return own
    return {**own, "description": f"{own['description']} {refusal['description']}"}


def _with_keys(document: dict[str, Any]) -> dict[str, Any]:
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
            if HTTP.get(path, {}).get(method.upper()) is Rule.OPEN:
                continue
            operation["security"] = [{KEY_SCHEME: []}, {}]
            for status, refusal in REFUSALS.items():
                own = operation["responses"].get(str(status))
                operation["responses"][str(status)] = refusal if own is None else _both(own, refusal)
    return document
