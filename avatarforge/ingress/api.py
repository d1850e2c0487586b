"""The REST interface as one ASGI application."""

from fastapi import FastAPI

from avatarforge import __version__
from avatarforge.ingress.documentation import add_documentation
from avatarforge.ingress.edge import Edge
from avatarforge.ingress.problems import add_problem_handlers
from avatarforge.ingress.routes import router
from avatarforge.ingress.service import ProfilePhotos


def create_api(photos: ProfilePhotos) -> FastAPI:
    """The application over the given service, which its caller closes."""
    api = FastAPI(
        title="AvatarForge",
        version=__version__,
        description="Turns photos into AI-made profile pictures. Errors are problem documents (RFC 9457).",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    api.state.photos = photos
    api.include_router(router)
    api.add_middleware(Edge)
    add_problem_handlers(api)
    add_documentation(api)
    return api
