"""The calls about the service itself: what it makes avatars with, and how it is."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from avatarforge import rest_messages
from avatarforge.domain import errors
from avatarforge.ingress import schemas
from avatarforge.ingress.answers import json_answer, service_of
from avatarforge.ingress.documentation import problem_answer, told
from avatarforge.ingress.problems import problem, problem_response

router = APIRouter()


@router.get(
    "/models", response_model=rest_messages.ModelList, responses=told(errors.ModelUnusable), tags=["models"]
)
async def list_models(request: Request) -> Response:
    """The model that avatars are made with, its defaults, and what each replica serves at present."""
    service = service_of(request)
    return json_answer(
        rest_messages.ModelList(
            models=(schemas.model_message(await service.model.manifest()),),
            replicas=tuple(schemas.replica_message(report) for report in service.replicas),
        )
    )


@router.get(
    "/styles", response_model=rest_messages.StyleList, responses=told(errors.ModelUnusable), tags=["models"]
)
async def list_styles(request: Request) -> Response:
    """What the field `style` of an upload may be."""
    manifest = await service_of(request).model.manifest()
    return json_answer(rest_messages.StyleList(model=manifest.name, styles=schemas.style_messages(manifest)))


@router.get("/healthz", response_model=schemas.Alive, tags=["health"])
async def healthz() -> Response:
    """Whether this process lives."""
    return json_answer(schemas.Alive())


@router.get(
    "/readyz",
    response_model=schemas.ReadinessMessage,
    responses={503: problem_answer("`not_ready`: a part does not answer; `parts` says which and why.")},
    tags=["health"],
)
async def readyz(request: Request) -> Response:
    """Whether this process can keep a promise now: database, storage and tracker answer."""
    message = schemas.readiness_message(await service_of(request).health.readiness())
    if message.ready:
        return json_answer(message)
    away = [name for name, part in message.parts.items() if not part.ok]
    return problem_response(
        problem(
            status=503,
            code="not_ready",
            title="Not ready",
            detail=f"Uploads cannot be accepted now: {', '.join(away)} not ready.",
            instance="/readyz",
            facts=message.model_dump(),
        ),
        {"Retry-After": "2"},
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format, or OpenMetrics.", "content": {"text/plain": {}}}
    },
    tags=["health"],
)
async def metrics(request: Request) -> Response:
    """Figures of the whole application, whichever replica answers."""
    body, media_type = await service_of(request).scrapes.answer(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
