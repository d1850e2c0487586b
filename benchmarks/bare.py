"""What a user would write first: a Serve ingress that only reads the upload."""

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve import Application

from avatarforge.settings import IngressSettings

PREFIX = "/bare"
FORMS = "/forms"

api = FastAPI()


@serve.ingress(api)
class BareIngress:
    """Reads each upload to its end and keeps nothing of it; knows one status."""

    @api.post("/customers/{customer_id}")
    async def read(self, request: Request, customer_id: str) -> JSONResponse:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
        return JSONResponse({"customerId": customer_id, "bytes": size}, 202)

    @api.post(FORMS + "/{customer_id}")
    async def read_form(self, customer_id: str, photo: UploadFile) -> JSONResponse:
        """Has FastAPI find the photo in the form."""
        size = len(await photo.read())
        return JSONResponse({"customerId": customer_id, "bytes": size}, 202)

    @api.get("/customers/{customer_id}/photos/{job_id}/status")
    async def status(self, customer_id: str, job_id: str) -> JSONResponse:
        return JSONResponse({"customerId": customer_id, "jobId": job_id, "status": "PENDING"})


def bare_application(settings: IngressSettings) -> Application:
    """Deployed with the same options as AvatarForge's ingress."""
    deployment = serve.deployment(
        BareIngress,
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.num_cpus},
    )
    return deployment.bind()
