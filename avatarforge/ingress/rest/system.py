"""The calls about the service itself: its models, its health and its metrics."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from avatarforge import rest_messages
from avatarforge.domain import errors
from avatarforge.ingress.health import ReadinessMessage
from avatarforge.ingress.problems import problem, problem_response
from avatarforge.ingress.rest import responses
from avatarforge.ingress.rest.openapi import document_problem, error_responses
from avatarforge.ingress.rest.responses import get_service, json_response

router = APIRouter()


@router.get(
    "/models",
    response_model=rest_messages.ModelList,
    responses=error_responses(errors.ModelUnusable),
    tags=["models"],
)
async def list_models(request: Request) -> Response:
    """List the model that avatars are made with, its defaults, and the model of each replica at present."""
    service = get_service(request)
    return json_response(
        rest_messages.ModelList(
            models=(responses.model_message(await service.model.manifest()),),
            replicas=tuple(map(rest_messages.ReplicaMessage.model_validate, service.live.replicas)),
            user_config_faults=service.user_config_faults,
        )
    )


@router.get(
    "/styles",
    response_model=rest_messages.StyleList,
    responses=error_responses(errors.ModelUnusable),
    tags=["models"],
)
async def list_styles(request: Request) -> Response:
    """List the values of an upload's field `style`."""
    manifest = await get_service(request).model.manifest()
    return json_response(
        rest_messages.StyleList(model=manifest.name, styles=responses.style_messages(manifest))
    )


@router.get("/about", response_model=rest_messages.AboutMessage, tags=["health"])
async def get_about(request: Request) -> Response:
    """Tell what becomes of photos: how long they are kept and may be linked to, and whose terms hold."""
    settings = get_service(request).settings
    return json_response(
        rest_messages.AboutMessage(
            job_retention_days=settings.tracker.job_retention_days or None,
            terms_url=settings.http.terms_url or None,
            max_link_seconds=settings.access.max_link_seconds if settings.access.signing_secrets else None,
        )
    )


@router.get("/healthz", response_model=responses.Alive, tags=["health"])
async def check_health() -> Response:
    """Tell that this process lives."""
    return json_response(responses.Alive())


@router.get(
    "/readyz",
    response_model=ReadinessMessage,
    responses={503: document_problem("`not_ready`: a part does not answer; `parts` says which and why.")},
    tags=["health"],
)
async def check_readiness(request: Request) -> Response:
    """Tell whether this process can accept uploads now: database, storage and tracker answer."""
    message = await get_service(request).health.readiness()
    if message.ready:
        return json_response(message)
    unavailable = [name for name, part in message.parts.items() if not part.ok]
    return problem_response(
        problem(
            status=503,
            code="not_ready",
            title="Not ready",
            detail=f"Uploads cannot be accepted now: {', '.join(unavailable)} not ready.",
            instance="/readyz",
            extensions=message.model_dump(),
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
async def get_metrics(request: Request) -> Response:
    """Get the metrics of the whole application, whichever replica answers."""
    body, media_type = await get_service(request).metrics_endpoint.scrape(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": media_type, "Cache-Control": "no-store"})
