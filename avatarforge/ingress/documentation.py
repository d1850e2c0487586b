"""What the OpenAPI description says beyond what FastAPI reads from the routes, and the pages that show it."""

from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

from avatarforge.domain.errors import AvatarForgeError
from avatarforge.domain.jobs import ImageFormat
from avatarforge.ingress import submissions
from avatarforge.ingress.problems import MEDIA_TYPE, answer_to
from avatarforge.ingress.schemas import Problem

ASSETS = "/docs/assets"
PROBLEM = "#/components/schemas/Problem"

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
                        "description": "How far the avatar may go from the photo.",
                    },
                    "steps": {"type": "integer", "minimum": 1, "maximum": submissions.MAX_STEPS},
                    "guidance": {
                        "type": "number",
                        "minimum": 0,
                        "maximum": submissions.MAX_GUIDANCE,
                        "description": "How closely to follow the prompt.",
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
                    },
                    "priority": {
                        "type": "integer",
                        "minimum": -submissions.MAX_PRIORITY,
                        "maximum": submissions.MAX_PRIORITY,
                        "default": 0,
                        "description": "Higher goes first.",
                    },
                    "allowRemote": {
                        "type": "boolean",
                        "default": True,
                        "description": "Whether the photo may go to another server where this one uses one.",
                    },
                    "callbackUrl": {
                        "type": "string",
                        "format": "uri",
                        "maxLength": submissions.MAX_CALLBACK_URL,
                        "description": "An absolute http or https URL, kept with the job.",
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


def add_documentation(api: FastAPI) -> None:
    """`/openapi.json`, `/docs` and a first page. All that a browser loads for them is served from here."""

    def described() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = get_openapi(
                title=api.title,
                version=api.version,
                description=api.description,
                routes=api.routes,
            )
            api.openapi_schema = _with_our_problems(document)
        return api.openapi_schema

    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="AvatarForge: the interface",
            swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{ASSETS}/favicon.png",
            # The validator is somebody else's server.
            swagger_ui_parameters={"validatorUrl": None, "tryItOutEnabled": True},
        )

    async def first_page() -> HTMLResponse:
        return HTMLResponse(_first_page(described()))

    api.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend the schema
    api.mount(ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))
    api.add_api_route("/docs", docs, include_in_schema=False)
    api.add_api_route("/", first_page, include_in_schema=False)


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


def _first_page(document: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(method.upper())} {escape(path)}</code><td>{escape(operation['summary'])}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>AvatarForge</title>"
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:3rem auto;padding:0 1rem}"
        "td{padding:.1rem 1rem .1rem 0}</style>"
        "<h1>AvatarForge</h1><p>A photo goes in, an avatar comes out. "
        "<a href=/docs>Read and try the calls</a>, see <a href=/styles>the styles</a> "
        "or <a href=/readyz>whether it is ready</a>.</p>"
        f"<table>{rows}</table></html>"
    )
