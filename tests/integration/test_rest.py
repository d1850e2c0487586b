"""The REST application as a whole: what it tells of itself, and over a real socket."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import uvicorn
from PIL import Image

from avatarforge.client import AsyncClient
from avatarforge.diffusion.models.catalogue import Catalogue, Manifest
from avatarforge.domain.replicas import ModelFailure
from avatarforge.ingress.app import create_documented_api
from avatarforge.ingress.middleware.public_prefix import PublicPrefix
from avatarforge.ingress.upload.form import FORM_NAMES
from tests.factories import NOON, a_manifest, a_model, a_report
from tests.integration.rest import Rest, a_jpeg, problem, running_rest
from tests.waiting import wait_until


async def test_the_model_and_its_styles_are_told(rest: Rest) -> None:
    [model] = (await rest.client.get("/models")).json()["models"]
    styles = (await rest.client.get("/styles")).json()

    defaults = Catalogue().read("avatar-mini").defaults
    assert (model["name"], model["defaults"]["steps"]) == ("avatar-mini", defaults.steps)
    assert styles == {"model": "avatar-mini", "styles": model["styles"]}
    assert {"name": "neon", "title": "Neon", "prompt": "neon portrait of a person, {prompt}"} in model[
        "styles"
    ]


async def test_faults_of_the_ingress_user_config_are_told(rest: Rest) -> None:
    assert (await rest.client.get("/models")).json()["userConfigFaults"] == []
    rest.photos.user_config_faults = ("scaling is 3.",)
    assert (await rest.client.get("/models")).json()["userConfigFaults"] == ["scaling is 3."]


async def test_what_each_replica_serves_and_what_failed_is_told(rest: Rest) -> None:
    failure = ModelFailure(model="broken", reason="The model 'broken' cannot be used: why.", at=NOON)
    rest.tracker.reports = (
        a_report(
            desired_model="broken",
            model=a_model("avatar-mini"),
            failure=failure,
            user_config_faults=("Nothing reads 'modle'.",),
            active=3,
            step_seconds={1: 0.1, 4: 0.25},
            tuning={"vae": "contiguous"},
            steps_by_images={1: 1, 3: 1},
        ),
    )

    async def told() -> list[dict[str, Any]]:
        return list((await rest.client.get("/models")).json()["replicas"])

    [replica] = await wait_until(told)
    assert replica == {
        "replicaId": "a",
        "backend": "local",
        "state": "serving",
        "reportedAt": "2026-05-17T12:00:00.123456Z",
        "desiredModel": "broken",
        "model": {
            "name": "avatar-mini",
            "fingerprint": "0123456789abcdef",
            "since": "2026-05-17T12:00:00.123456Z",
            "loadSeconds": 2.0,
            "loadPhases": {"read": 0.5, "measure": 1.0, "first_image": 0.5},
            "dtype": "float32",
        },
        "failure": {
            "model": "broken",
            "reason": "The model 'broken' cannot be used: why.",
            "at": "2026-05-17T12:00:00.123456Z",
        },
        "userConfigFaults": ["Nothing reads 'modle'."],
        "device": None,
        "limit": 4,
        "active": 3,
        "waiting": 0,
        "stepSeconds": {"1": 0.1, "4": 0.25},
        "meanImages": 2.0,
        "stepsByImages": {"1": 1, "3": 1},
        "imagesGenerated": 0,
        "busySeconds": 0.0,
        "memoryBytes": None,
        "cachedEmbeddings": 0,
        "tuning": {"vae": "contiguous"},
        "compileFailure": None,
        "circuit": None,
    }


async def test_while_another_model_serves_than_the_desired_one_its_styles_count(tmp_path: Path) -> None:
    async with running_rest(tmp_path, diffusion={"model": "avatar-maxi"}) as rest:
        rest.tracker.reports = (a_report(desired_model="avatar-maxi", model=a_model("avatar-mini")),)

        async def model() -> str:
            return str((await rest.client.get("/styles")).json().get("model"))

        await wait_until(lambda: rest.live.replicas)
        assert await model() == "avatar-mini"


async def test_what_the_model_has_not_is_refused(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = a_manifest(name="avatar-mini", capabilities={"strength": False})
    monkeypatch.setattr(rest.photos.model, "_catalogue", Shelf(manifest))

    told = problem(await rest.post("ana", a_jpeg(), strength="0.5"))
    assert (told["status"], told["code"], told["field"], told["value"]) == (
        422,
        "invalid_request",
        "strength",
        "0.5",
    )
    assert "the model avatar-mini has no strength" in told["detail"]
    assert (await rest.post("ana", a_jpeg())).status_code == 202


async def test_a_sampler_is_refused_where_the_model_leaves_no_choice(rest: Rest) -> None:
    told = problem(await rest.post("ana", a_jpeg(), sampler="Euler a"))
    assert (told["status"], told["field"], told["value"]) == (422, "sampler", "Euler a")
    assert "this model has its own sampler alone" in told["detail"]


async def test_a_sampler_is_one_of_those_that_the_model_names(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = a_manifest(name="avatar-mini", scheduler="ddim", samplers=["Euler a", "UniPC"])
    monkeypatch.setattr(rest.photos.model, "_catalogue", Shelf(manifest))
    [model] = (await rest.client.get("/models")).json()["models"]
    assert model["samplers"] == ["DDIM", "Euler a", "UniPC"]
    assert (
        "one of DDIM, Euler a, UniPC" in problem(await rest.post("ana", a_jpeg(), sampler="Heun"))["detail"]
    )
    accepted = await rest.post("ana", a_jpeg(), sampler="UniPC")
    assert accepted.json()["parameters"]["sampler"] == "UniPC"


async def test_a_size_is_what_the_model_makes(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = a_manifest(name="avatar-mini", max_size=192)
    monkeypatch.setattr(rest.photos.model, "_catalogue", Shelf(manifest))
    [model] = (await rest.client.get("/models")).json()["models"]
    assert (model["size"], model["maxSize"]) == (128, 192)
    accepted = (await rest.post("ana", a_jpeg(), width="64", height="192")).json()["parameters"]
    assert (accepted["width"], accepted["height"]) == (64, 192)
    for fields, field, told in (
        (
            {"width": "64", "height": "200"},
            "height",
            "a multiple of 8 from 64 to 192 with the model avatar-mini",
        ),
        ({"width": "68", "height": "64"}, "width", "a multiple of 8 from 64 to 4096"),
        ({"width": "64"}, "height", "width and height come together"),
    ):
        refused = problem(await rest.post("ana", a_jpeg(), **fields))
        assert (refused["status"], refused["field"]) == (422, field)
        assert told in refused["detail"]


async def test_a_model_that_edits_tells_its_dial_and_takes_it(
    rest: Rest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest.photos.model, "_catalogue", Shelf(a_manifest(family="instruct-pix2pix")))
    [model] = (await rest.client.get("/models")).json()["models"]
    assert model["dials"] == ["imageGuidance"]
    assert (model["defaults"]["strength"], model["defaults"]["imageGuidance"]) == (None, 1.5)

    accepted = await rest.post("ana", a_jpeg(), imageGuidance="2.5", guidance="7")
    assert accepted.status_code == 202
    asked = accepted.json()["parameters"]
    assert (asked["imageGuidance"], asked["guidance"], asked["strength"]) == (2.5, 7, None)
    refused = problem(await rest.post("ana", a_jpeg(), imageGuidance="2.5", guidance="1"))
    assert (refused["status"], refused["field"]) == (422, "imageGuidance")
    assert "come with a guidance above 1" in refused["detail"]
    refused = problem(await rest.post("ana", a_jpeg(), strength="0.5"))
    assert "has no strength, it has imageGuidance" in refused["detail"]


class Shelf:
    """A catalogue of one model."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def read(self, name: str) -> Manifest:
        return self._manifest


async def test_a_manifest_that_breaks_later_changes_nothing(
    rest: Rest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await rest.client.get("/styles")
    monkeypatch.setattr(rest.photos.model, "MANIFEST_MAX_AGE_SECONDS", 0)
    monkeypatch.setattr(rest.photos.model, "_catalogue", Catalogue(tmp_path))

    assert (await rest.client.get("/styles")).content == before.content


async def test_a_model_that_nobody_knows_is_a_problem_that_names_it(tmp_path: Path) -> None:
    async with running_rest(tmp_path, diffusion={"model": "avatar-maxi"}) as rest:
        told = problem(await rest.client.get("/styles"))

    assert (told["status"], told["code"], told["model"]) == (500, "model_unusable", "avatar-maxi")


async def test_a_replica_whose_parts_answer_is_ready(rest: Rest) -> None:
    answer = await rest.client.get("/readyz")

    body = answer.json()
    assert (answer.status_code, body["ready"]) == (200, True)
    assert {name: part["ok"] for name, part in body["parts"].items()} == {
        "database": True,
        "storage": True,
        "tracker": True,
    }


async def test_a_replica_whose_storage_does_not_answer_is_not_ready_and_says_so(rest: Rest) -> None:
    rest.storage.folder.write_text("in the way")

    answer = await rest.client.get("/readyz")

    told = problem(answer)
    assert (answer.status_code, told["code"]) == (503, "not_ready")
    assert {name: part["ok"] for name, part in told["parts"].items()} == {
        "database": True,
        "storage": False,
        "tracker": True,
    }
    assert "storage" in told["detail"]
    assert answer.headers["retry-after"]


async def test_a_replica_that_lost_its_tracker_is_not_ready(rest: Rest) -> None:
    await rest.live.stop()
    rest.live._shards[0].heard_at -= 60

    told = problem(await rest.client.get("/readyz"))

    assert told["parts"]["tracker"]["ok"] is False
    assert (await rest.client.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/healthz/", 404, "not_found"),
        ("POST", "/customers/", 400, "invalid_customer_id"),
        ("GET", "/customers/ana/photos/1/2/3", 404, "not_found"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("PUT", "/customers/ana", 405, "method_not_allowed"),
        ("GET", "/docs/assets/nothing.js", 404, "not_found"),
    ],
)
async def test_an_unknown_call_is_a_problem_too(
    rest: Rest, method: str, path: str, status: int, code: str
) -> None:
    answer = await rest.client.request(method, path)

    assert (answer.status_code, problem(answer)["code"]) == (status, code)
    if status == 405:
        allowed = "GET, HEAD" if path == "/healthz" else "DELETE, GET, HEAD, POST"
        assert answer.headers["allow"] == allowed


async def test_head_is_answered_as_get_without_the_body(rest: Rest) -> None:
    job = await rest.submitted("ana", a_jpeg())
    photos = "/customers/ana/photos"
    for path in (
        photos,
        f"{photos}/{job.job_id}/status",
        f"{photos}/{job.job_id}/original",
        "/customers",
        "/models",
        "/healthz",
        "/openapi.json",
        "/",
    ):
        get, head = await rest.client.get(path), await rest.client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
    assert (await rest.client.head(f"{photos}/stream", timeout=5)).status_code == 200
    assert (await rest.client.head("/customers/ben")).status_code == 404
    original = f"{photos}/{job.job_id}/original"
    assert (await rest.client.head(original, headers={"Range": "bytes=0-9"})).status_code == 200


async def test_long_answers_are_compressed(rest: Rest) -> None:
    for _ in range(3):
        await rest.submitted("ana", a_jpeg())
    answer = await rest.client.get("/customers/ana/photos")

    assert answer.headers["content-encoding"] == "gzip"
    assert len(answer.json()["photos"]) == 3


async def test_problems_name_fields_as_the_client_wrote_them(rest: Rest) -> None:
    photo = {"photo": ("me.jpg", a_jpeg())}
    for answer, field in (
        (await rest.client.post("/customers/ana", files=photo, data={"bogus": "1"}), "bogus"),
        (await rest.client.post("/customers/a b", files=photo), "customerId"),
        (await rest.client.get("/customers/ana/photos?limit=0"), "limit"),
        (await rest.client.get("/customers/ana/photos/stream?after=99"), "after"),
        (
            await rest.client.get("/customers/ana/photos/stream", headers={"Last-Event-ID": "99"}),
            "Last-Event-ID",
        ),
    ):
        assert problem(answer)["field"] == field


async def test_the_documentation_loads_nothing_from_elsewhere(rest: Rest) -> None:
    page = (await rest.client.get("/docs")).text

    assert "https://" not in page
    assert '"docs/assets/swagger-ui-bundle.js"' in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert (await rest.client.get(f"/docs/assets/{asset}")).status_code == 200


@pytest.mark.parametrize(
    ("http", "headers"),
    [
        ({"root_path": "/avatars"}, {}),
        ({"trusted_proxies": "127.0.0.0/8"}, {"X-Forwarded-Prefix": "/avatars/"}),
    ],
)
async def test_below_a_proxys_path_addresses_begin_with_it(
    tmp_path: Path, http: dict[str, str], headers: dict[str, str]
) -> None:
    async with running_rest(tmp_path, http=http) as rest:
        rest.client.headers.update(headers)
        for prefix in ("", "/avatars"):
            files = {"photo": ("me.jpg", a_jpeg())}
            accepted = await rest.client.post(f"{prefix}/customers/ana", files=files)
            told = accepted.json()
            address = f"/avatars/customers/ana/photos/{told['jobId']}"
            assert accepted.headers["location"] == f"{address}/status"
            assert told["originalUrl"] == f"{address}/original"
            assert (await rest.client.get(f"{address}/original")).status_code == 200
        page = (await rest.client.get("/avatars/customers/ana/photos?limit=1")).json()
        assert page["next"].startswith("/avatars/customers/ana/photos?")
        assert (await rest.client.get(page["next"])).json()["next"] is None
        document = (await rest.client.get("/avatars/openapi.json")).json()
        assert document["servers"][0]["url"] == "/avatars"
        assert (await rest.client.get("/avatars/customers/a%2Fb")).status_code == 400
        bare = await rest.client.get("/avatars?job=1")
        assert (bare.status_code, bare.headers["location"]) == (307, "/avatars/?job=1")
        assert bare.headers["x-content-type-options"] == "nosniff"
        assert (await rest.client.get("/avatars", follow_redirects=True)).status_code == 200
        if not headers:
            transport = httpx.ASGITransport(rest.api)
            async with AsyncClient("http://testserver/avatars", transport=transport) as client:
                assert len([job async for job in client.list_jobs("ana")]) == 2


async def test_a_prefix_from_elsewhere_counts_for_nothing(tmp_path: Path) -> None:
    async with running_rest(tmp_path, http={"trusted_proxies": "10.0.0.0/8"}) as rest:
        for prefix in ("/avatars", "//evil.example", "/a b"):
            headers = {"X-Forwarded-Prefix": prefix}
            files = {"photo": ("me.jpg", a_jpeg())}
            accepted = await rest.client.post("/customers/ana", files=files, headers=headers)
            assert accepted.headers["location"].startswith("/customers/ana/photos/")


@pytest.mark.parametrize(
    ("forwarded", "prefix"), [(("9.9.9.9", "10.1.2.3"), "/avatars"), (("10.1.2.3", "9.9.9.9"), "")]
)
async def test_behind_our_haproxy_its_own_line_says_who_asked(
    rest: Rest, forwarded: tuple[str, str], prefix: str
) -> None:
    network = ip_network("10.0.0.0/8")
    api = PublicPrefix(rest.api, root_path="", trusted_proxies=[network], behind_haproxy=True)
    headers = [("X-Forwarded-Prefix", "/avatars"), *(("X-Forwarded-For", line) for line in forwarded)]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://testserver") as client:
        files = {"photo": ("me.jpg", a_jpeg())}
        accepted = await client.post("/customers/ana", files=files, headers=headers)
    assert accepted.headers["location"].startswith(f"{prefix}/customers/ana/photos/")


async def test_every_call_is_described_with_its_errors(rest: Rest) -> None:
    document = (await rest.client.get("/openapi.json")).json()
    assert document == create_documented_api().openapi()

    calls = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(calls) == {
        "GET /about",
        "GET /keys/self",
        "POST /crop",
        "POST /customers/{customerId}",
        "GET /customers",
        "GET /photos",
        "GET /customers/{customerId}",
        "DELETE /customers/{customerId}",
        "GET /customers/{customerId}/photos",
        "GET /customers/{customerId}/photos/stream",
        "DELETE /customers/{customerId}/photos/{jobId}",
        "GET /customers/{customerId}/photos/{jobId}/status",
        "POST /customers/{customerId}/photos/{jobId}/cancel",
        "POST /customers/{customerId}/photos/{jobId}/retry",
        "GET /customers/{customerId}/photos/{jobId}/deliveries",
        "POST /customers/{customerId}/photos/{jobId}/deliveries/{deliveryId}/redeliver",
        "GET /customers/{customerId}/photos/{jobId}/original",
        "GET /customers/{customerId}/photos/{jobId}/generated",
        "GET /customers/{customerId}/photos/{jobId}/generated/{index}",
        "PUT /customers/{customerId}/photos/{jobId}/kept",
        "GET /customers/{customerId}/photos/{jobId}/links",
        "POST /customers/{customerId}/tickets",
        "GET /models",
        "GET /styles",
        "GET /healthz",
        "GET /metrics",
        "GET /readyz",
    }
    assert all(call["summary"] for call in calls.values())
    assert all("400" in call["responses"] for name, call in calls.items() if "{customerId}" in name)
    asking = {name: call for name, call in calls.items() if any(map(is_read, call.get("parameters", ())))}
    assert len(asking) > 5
    assert all("`invalid_request`" in call["responses"]["422"]["description"] for call in asking.values())
    upload = calls["POST /customers/{customerId}"]
    refused_to_all = {"401", "403", "429", "503"}
    assert set(upload["responses"]) == {"202", "400", "409", "413", "415", "422", "500"} | refused_to_all
    too_much = upload["responses"]["429"]["description"]
    assert "`backlog_full`" in too_much
    assert "`rate_limited`" in too_much
    assert {name for name, call in calls.items() if refused_to_all <= call["responses"].keys()} == {
        name for name in calls if name not in ("GET /about", "GET /healthz", "GET /readyz")
    }
    stream = calls["GET /customers/{customerId}/photos/stream"]
    assert {parameter["name"] for parameter in stream["parameters"]} == {
        *("customerId", "jobId", "after", "Last-Event-ID", "previews", "ticket")
    }
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"photo", *FORM_NAMES.values()}
    assert references(document) <= set(document["components"]["schemas"])


def is_read(parameter: dict[str, Any]) -> bool:
    """Whether its text may be wrong."""
    return parameter["in"] == "query" and parameter["name"] != "ticket"


def references(value: Any) -> set[str]:
    """Names of the schemas that are referred to anywhere."""
    text = json.dumps(value)
    return {part.partition('"')[0] for part in text.split("#/components/schemas/")[1:]}


# --- over a socket --------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def address(rest: Rest) -> AsyncIterator[str]:
    """The same application behind a real server."""
    server = uvicorn.Server(
        uvicorn.Config(rest.api, port=0, log_config=None, lifespan="off", timeout_graceful_shutdown=2)
    )
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


async def test_over_a_socket_a_photo_goes_in_and_comes_out(rest: Rest, address: str) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        accepted = await client.post("/customers/ana", files={"photo": ("me.jpg", a_jpeg(640, 480))})
        status = await client.get(accepted.headers["location"])
        original = await client.get(status.json()["originalUrl"])

    assert accepted.status_code == 202
    with Image.open(io.BytesIO(original.content)) as image:
        assert image.size == (640, 480)


async def test_over_a_socket_an_encoded_slash_is_refused_by_the_grammar(address: str) -> None:
    async with httpx.AsyncClient(base_url=address) as client:
        answer = await client.get("/customers/a%2Fphotos")

    assert problem(answer)["code"] == "invalid_customer_id"


async def test_over_a_socket_a_large_upload_hears_why_it_is_refused(rest: Rest, address: str) -> None:
    photo = a_jpeg() + bytes(25 * 1024 * 1024)
    async with httpx.AsyncClient(base_url=address, timeout=30) as client:
        answer = await client.post("/customers/ana", files={"photo": ("me.jpg", photo)})

    assert problem(answer)["code"] == "photo_too_large"
    assert rest.kept() == []


async def test_over_a_socket_a_client_that_goes_away_leaves_nothing(rest: Rest, address: str) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(
        b"POST /customers/ana HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n' + bytes(600_000)
    )
    await writer.drain()
    await wait_until(rest.photos.upload_folder.exists)
    writer.close()
    await writer.wait_closed()

    await wait_until(lambda: rest.kept() == [])
