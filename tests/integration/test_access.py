"""Who gets in, over every route and every method of the application: one without a rule fails here."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from starlette.routing import Mount, Route

from avatarforge.access.key_cache import KeyCache
from avatarforge.access.permissions import GRPC, HTTP, Permission
from avatarforge.domain.access import ApiKey
from avatarforge.domain.errors import DatabaseUnavailable
from avatarforge.domain.jobs import new_job_id
from avatarforge.grpc_generated import profile_photo_job_pb2 as pb
from avatarforge.grpc_generated.profile_photo_job_pb2_grpc import ProfilePhotoJobServiceStub
from avatarforge.ingress.app import create_api
from avatarforge.ingress.grpc import JobMethods
from avatarforge.ingress.grpc.serving import add_job_service_to_server
from tests.integration.rest import a_jpeg, problem
from tests.integration.service import Service, running_service
from tests.keys import kept_key, records_of
from tests.waiting import wait_until

SERVICE = pb.DESCRIPTOR.services_by_name["ProfilePhotoJobService"]
OF_CUSTOMERS = (Permission.CUSTOMER, Permission.STREAM, Permission.IMAGE)
A_LINK_SECRET = "a secret for links of 32 characters or more"


@dataclass(frozen=True)
class Guarded:
    """A service that asks for keys; ben has a job, cleo is nobody."""

    service: Service
    key: str
    """Reaches everybody and administers."""
    of_ana: str
    """Reaches ana and the customer of AUTOMATIC1111's clients."""
    job_id: str
    """Of ben."""

    async def ask(self, method: str, path: str, key: str | None = None, **options: Any) -> httpx.Response:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # Streams and slow answers are not waited for: what counts is the beginning.
        request = self.service.client.build_request(method, path, headers=headers, **options)
        answer = await self.service.client.send(request, stream=True)
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            await answer.aread()
        await answer.aclose()
        return answer

    def path(self, template: str, customer_id: str = "ben") -> str:
        for name, value in {
            "{customerId}": customer_id,
            "{jobId}": self.job_id,
            "{deliveryId}": "nothing",
            "{index}": "0",
            "{version}": "-",
            "{name:path}": "theme.js",
            "{path:path}": "swagger-ui.css",
        }.items():
            template = template.replace(name, value)
        assert "{" not in template, f"say what {template} may be"
        return template

    def kept(self, *customers: str, **options: Any) -> tuple[ApiKey, str]:
        return kept_key(self.service.settings, *customers, **options)

    def revoke(self, key: ApiKey) -> None:
        assert records_of(self.service.settings).revoke(key.key_id, datetime.now(UTC))


@pytest_asyncio.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Guarded]:
    access = {"required": "always", "requests_per_second": 0, "link_secrets": A_LINK_SECRET}
    async with running_service(tmp_path, access=access, http={"sdapi": True}) as service:
        _, key = kept_key(service.settings, "*", is_admin=True)
        _, of_ana = kept_key(service.settings, "ana", "sdapi")
        service.client.headers["Authorization"] = f"Bearer {key}"
        job_id = await service.submitted("ben")
        await service.ended(job_id, "ben")
        del service.client.headers["Authorization"]
        service.authorizer.start()
        yield Guarded(service, key, of_ana, job_id)
        await service.authorizer.stop()


def calls() -> Iterator[tuple[str, str, Permission]]:
    for template, methods in HTTP.items():
        for method, rule in methods.items():
            yield method, template, rule


CLOSED = [call for call in calls() if call[2] is not Permission.PUBLIC]


# --- the table ------------------------------------------------------------------------------------------


def routes_of(api: FastAPI) -> set[tuple[str, str]]:
    found = set()
    routes = list(api.routes)
    while routes:
        match route := routes.pop():
            case Mount(path=path):
                found.add(("GET", f"{path}/{{path:path}}"))
            case Route(path=path, methods=methods):
                found |= {(method, path) for method in methods or () if method != "HEAD"}
            case _ if (router := getattr(route, "original_router", None)) is not None:
                # What FastAPI's `include_router` makes; ours have no prefix.
                routes += router.routes
            case _:
                raise AssertionError(f"{route} is of a kind that the table of rules does not know")
    return found


async def test_every_route_has_a_rule_and_every_rule_a_route(guarded: Guarded) -> None:
    api = create_api(guarded.service.photos, guarded.service.authorizer)

    assert routes_of(api) == {(method, template) for method, template, _ in calls()}


async def test_a_route_without_a_rule_would_be_noticed_and_is_not_there(guarded: Guarded) -> None:
    api = create_api(guarded.service.photos, guarded.service.authorizer)
    api.add_api_route("/customers/{customerId}/secrets", lambda: "told", methods=["GET", "PUT"])
    api.add_api_route("/customers/{customerId}", lambda: "told", methods=["PUT"])

    assert routes_of(api) - {(method, template) for method, template, _ in calls()} == {
        ("GET", "/customers/{customerId}/secrets"),
        ("PUT", "/customers/{customerId}/secrets"),
        ("PUT", "/customers/{customerId}"),
    }
    bearer = {"Authorization": f"Bearer {guarded.key}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(api), base_url="http://here", headers=bearer
    ) as client:
        missing = await client.get("/customers/ben/secrets")
        forbidden = await client.put("/customers/ben")
    assert (missing.status_code, problem(missing)["code"]) == (404, "not_found")
    assert (forbidden.status_code, forbidden.headers["allow"]) == (405, "DELETE, GET, HEAD, POST")


def test_every_grpc_method_has_a_rule() -> None:
    services = [SERVICE, *health_pb2.DESCRIPTOR.services_by_name.values()]
    methods = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}

    assert methods == set(GRPC)


# --- REST, SSE and AUTOMATIC1111's API --------------------------------------------------------------------


async def test_no_route_but_the_open_ones_answers_without_a_key(guarded: Guarded) -> None:
    for method, template, rule in calls():
        answer = await guarded.ask(method, guarded.path(template))
        if rule is Permission.PUBLIC:
            assert answer.status_code in (200, 304), (method, template, answer.text)
            continue
        assert answer.status_code == 401, (method, template)
        scheme = "Basic" if rule is Permission.SDAPI else "Bearer"
        assert answer.headers["www-authenticate"] == f'{scheme} realm="avatarforge"'
        assert answer.json()["error" if rule is Permission.SDAPI else "code"] == "unauthenticated"


@pytest.mark.parametrize(
    "authorization",
    ["Bearer", "Bearer x", "Basic eA==", "bearer afk_0123456789ab_" + "A" * 43, "afk", "x" * 500],
)
async def test_no_route_answers_to_a_key_that_is_none(guarded: Guarded, authorization: str) -> None:
    for method, template, _ in CLOSED:
        answer = await guarded.service.client.request(
            method, guarded.path(template), headers={"Authorization": authorization}
        )
        assert answer.status_code == 401, (method, template)


async def test_no_route_answers_to_a_revoked_key_or_an_expired_one(guarded: Guarded) -> None:
    revoked, revoked_key = guarded.kept("*", is_admin=True)
    _, expired_key = guarded.kept("*", is_admin=True, expires_in=timedelta(microseconds=1))
    assert (await guarded.ask("GET", "/styles", revoked_key)).status_code == 200
    guarded.revoke(revoked)

    async def is_refused() -> bool:
        return (await guarded.ask("GET", "/styles", revoked_key)).status_code == 401

    await wait_until(is_refused, deadline=KeyCache.REFRESH_INTERVAL_SECONDS + 3)
    for key in (revoked_key, expired_key):
        for method, template, _ in CLOSED:
            answer = await guarded.ask(method, guarded.path(template), key)
            assert answer.status_code == 401, (method, template)


async def test_the_key_of_one_customer_opens_nothing_of_another(guarded: Guarded) -> None:
    for method, template, rule in CLOSED:
        answer = await guarded.ask(method, guarded.path(template), guarded.of_ana)
        if rule in OF_CUSTOMERS or rule in (Permission.SCRAPE, Permission.ADMIN_OF_ALL):
            assert (answer.status_code, problem(answer)["code"]) == (403, "forbidden"), (method, template)
        else:
            assert answer.status_code not in (401, 403), (method, template)


async def test_a_refusal_does_not_tell_whether_there_is_such_a_customer(guarded: Guarded) -> None:
    for method, template, rule in CLOSED:
        if rule not in OF_CUSTOMERS:
            continue
        there, nowhere = [
            await guarded.ask(method, guarded.path(template, customer_id), guarded.of_ana)
            for customer_id in ("ben", "cleo")
        ]
        assert there.text.replace("ben", "cleo") == nowhere.text
        assert there.status_code == nowhere.status_code


async def test_the_job_of_another_customer_is_not_found_under_ones_own_name(guarded: Guarded) -> None:
    for method, template, rule in CLOSED:
        if rule in OF_CUSTOMERS and "{jobId}" in template:
            body = {"json": {"index": 0}} if method == "PUT" else {}
            answer = await guarded.ask(method, guarded.path(template, "ana"), guarded.of_ana, **body)
            assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found"), template
    answer = await guarded.ask("GET", f"/customers/ana/photos/stream?jobId={guarded.job_id}", guarded.of_ana)
    assert answer.status_code == 404


async def test_a_key_that_reaches_all_opens_every_route(guarded: Guarded) -> None:
    # Erasing comes last, or it would leave nothing to open.
    for method, template, _ in sorted(CLOSED, key=lambda call: (call[0] == "DELETE", -len(call[1]))):
        files = {"photo": a_jpeg()} if (method, template) == ("POST", "/customers/{customerId}") else None
        answer = await guarded.ask(method, guarded.path(template), guarded.key, files=files)
        assert answer.status_code not in (401, 403, 405, 429), (method, template, answer.status_code)


async def test_a_key_without_customers_may_only_administer(guarded: Guarded) -> None:
    _, watcher = guarded.kept(is_admin=True)
    for method, template, rule in CLOSED:
        answer = await guarded.ask(method, guarded.path(template), watcher)
        allowed = rule in (Permission.SCRAPE, Permission.KEY)
        assert (answer.status_code != 403) is allowed, (method, template)


async def test_the_beginning_of_ids_opens_all_that_begin_so(guarded: Guarded) -> None:
    _, key = guarded.kept("be*")

    assert (await guarded.ask("GET", "/customers/ben", key)).status_code == 200
    assert (await guarded.ask("GET", "/customers/bea", key)).status_code == 404
    assert (await guarded.ask("GET", "/customers/cleo", key)).status_code == 403


async def test_a_malformed_customer_is_told_so_only_to_a_key(guarded: Guarded) -> None:
    assert (await guarded.ask("GET", "/customers/-ben")).status_code == 401
    answer = await guarded.ask("GET", "/customers/-ben", guarded.of_ana)
    assert (answer.status_code, problem(answer)["code"]) == (400, "invalid_customer_id")


async def test_clients_of_automatic1111_send_the_key_as_a_password(guarded: Guarded) -> None:
    for password, status in ((guarded.of_ana, 200), (guarded.kept("ana")[1], 403), ("guess", 401)):
        answer = await guarded.service.client.get("/sdapi/v1/options", auth=("anybody", password))
        assert answer.status_code == status
    plain = await guarded.service.client.get("/customers/ana", auth=("anybody", guarded.of_ana))
    assert plain.status_code == 401


async def test_a_large_upload_without_a_key_hears_why_it_is_refused(guarded: Guarded) -> None:
    answer = await guarded.ask("POST", "/customers/ben", files={"photo": b"x" * 3_000_000})

    assert problem(answer)["code"] == "unauthenticated"


# --- tickets ----------------------------------------------------------------------------------------------


async def a_ticket(guarded: Guarded, key: str, customer_id: str = "ben") -> str:
    answer = await guarded.ask("POST", f"/customers/{customer_id}/tickets", key)
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return str(answer.json()["ticket"])


async def test_a_ticket_opens_one_stream_of_its_customer_once(guarded: Guarded) -> None:
    ticket = await a_ticket(guarded, guarded.key)
    stream = f"/customers/ben/photos/stream?ticket={ticket}"

    assert (await guarded.ask("GET", f"/customers/ana/photos/stream?ticket={ticket}")).status_code == 401
    assert (await guarded.ask("GET", stream)).status_code == 200
    assert (await guarded.ask("GET", stream)).status_code == 401


async def test_a_ticket_is_used_up_for_every_replica(guarded: Guarded) -> None:
    ticket = await a_ticket(guarded, guarded.key)
    async with guarded.service.fresh_replica() as other:
        elsewhere = Guarded(replace(guarded.service, client=other.client), "", "", guarded.job_id)
        stream = f"/customers/ben/photos/stream?ticket={ticket}"
        answers = await asyncio.gather(
            *(each.ask("GET", stream) for each in (guarded, elsewhere, guarded, elsewhere))
        )
    assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401]


async def test_a_ticket_opens_nothing_but_streams(guarded: Guarded) -> None:
    ticket = await a_ticket(guarded, guarded.key)
    for method, template, rule in CLOSED:
        if rule is not Permission.STREAM:
            answer = await guarded.ask(method, f"{guarded.path(template)}?ticket={ticket}")
            assert answer.status_code == 401, (method, template)


async def test_a_ticket_expires_and_dies_with_its_key(guarded: Guarded) -> None:
    late = await a_ticket(guarded, guarded.key)
    guarded.service.clock.ahead = timedelta(seconds=31)
    assert (await guarded.ask("GET", f"/customers/ben/photos/stream?ticket={late}")).status_code == 401
    guarded.service.clock.ahead = timedelta()

    key, text = guarded.kept("ben")
    orphan = await a_ticket(guarded, text)
    guarded.revoke(key)

    async def is_refused() -> bool:
        return (await guarded.ask("GET", "/styles", text)).status_code == 401

    await wait_until(is_refused)
    assert (await guarded.ask("GET", f"/customers/ben/photos/stream?ticket={orphan}")).status_code == 401


async def test_a_stream_tells_nothing_more_once_its_key_is_revoked(guarded: Guarded) -> None:
    key, text = guarded.kept("ben")
    headers = {"Authorization": f"Bearer {text}"}
    path = "/customers/ben/photos/stream"
    heard = []
    async with guarded.service.client.stream("GET", path, headers=headers) as stream:
        lines = stream.aiter_lines()
        while "data:" not in (line := await anext(lines)):
            heard.append(line)
        guarded.revoke(key)

        async def is_refused() -> bool:
            return (await guarded.ask("GET", "/styles", text)).status_code == 401

        await wait_until(is_refused)
        await guarded.ask("POST", "/customers/ben", guarded.key, files={"photo": a_jpeg()})
        rest = [line async for line in lines]
    assert heard
    assert not any("data:" in line for line in rest)


async def test_a_stream_ends_well_where_nobody_can_tell_any_more_whether_its_key_is_valid(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with guarded.service.client.stream(
        "GET", "/customers/ben/photos/stream", headers={"Authorization": f"Bearer {guarded.key}"}
    ) as stream:
        lines = stream.aiter_lines()
        while "data:" not in await anext(lines):
            continue

        async def cannot_tell(key: ApiKey | None) -> None:
            raise DatabaseUnavailable("it is away")

        monkeypatch.setattr(guarded.service.authorizer, "check", cannot_tell)
        await guarded.ask("POST", "/customers/ben", guarded.key, files={"photo": a_jpeg()})
        rest = [line async for line in lines]
    assert not any("data:" in line for line in rest)


# --- links ------------------------------------------------------------------------------------------------


async def links_of(guarded: Guarded) -> dict[str, Any]:
    answer = await guarded.ask("GET", f"/customers/ben/photos/{guarded.job_id}/links", guarded.key)
    assert answer.status_code == 200, answer.text
    links: dict[str, Any] = answer.json()
    return links


async def test_a_link_shows_its_image_without_a_key_until_it_expires(guarded: Guarded) -> None:
    links = await links_of(guarded)
    [image] = links["images"]
    assert image["index"] == 0
    urls = {kind: links[f"{kind}Url"] for kind in ("original", "generated")}
    for kind, url in (urls | {"generated/0": image["generatedUrl"]}).items():
        shown = await guarded.ask("GET", url)
        path = f"/customers/ben/photos/{guarded.job_id}/{kind}"
        assert shown.status_code == 200
        assert shown.content == (await guarded.ask("GET", path, guarded.key)).content

    guarded.service.clock.ahead = timedelta(seconds=guarded.service.settings.access.link_seconds)
    expired = await guarded.ask("GET", links["originalUrl"])
    assert (expired.status_code, problem(expired)["code"]) == (403, "link_invalid")


async def test_a_link_works_as_long_as_one_asks_for_a_week_at_most(guarded: Guarded) -> None:
    path = f"/customers/ben/photos/{guarded.job_id}/links"
    answer = await guarded.ask("GET", f"{path}?expiresSeconds=86400", guarded.key)
    url = answer.json()["generatedUrl"]
    for hours, status in ((23, 200), (25, 403)):
        guarded.service.clock.ahead = timedelta(hours=hours)
        assert (await guarded.ask("GET", url)).status_code == status
    for seconds, expected in (("0", "1 or more"), (604801, "604800 or less"), ("soon", "a whole number")):
        refused = await guarded.ask("GET", f"{path}?expiresSeconds={seconds}", guarded.key)
        assert (refused.status_code, problem(refused)["code"]) == (422, "invalid_request")
        assert problem(refused)["detail"] == f"expiresSeconds is {seconds!r}, but it must be {expected}."


async def test_a_link_to_the_original_works_no_longer_than_the_servers_own_time(guarded: Guarded) -> None:
    path = f"/customers/ben/photos/{guarded.job_id}/links"
    links = (await guarded.ask("GET", f"{path}?expiresSeconds=86400", guarded.key)).json()
    end, original_end = (datetime.fromisoformat(links[name]) for name in ("expiresAt", "originalExpiresAt"))
    assert (end - original_end).total_seconds() == 86_400 - 300
    guarded.service.clock.ahead = timedelta(seconds=300)
    assert (await guarded.ask("GET", links["originalUrl"])).status_code == 403
    assert (await guarded.ask("GET", links["generatedUrl"])).status_code == 200


async def test_a_server_may_allow_less_than_a_week(tmp_path: Path) -> None:
    access = {"link_secrets": A_LINK_SECRET, "max_link_seconds": 3600}
    async with running_service(tmp_path, access=access) as service:
        path = f"/customers/ana/photos/{await service.submitted()}/links"
        refused = await service.client.get(f"{path}?expiresSeconds=3601")
        assert refused.status_code == 422
        assert problem(refused)["detail"] == "expiresSeconds is 3601, but it must be 3600 or less."
        assert (await service.client.get(f"{path}?expiresSeconds=3600")).status_code == 200
        assert (await service.client.get("/about")).json()["maxLinkSeconds"] == 3600


async def test_a_link_is_good_for_its_own_image_only(guarded: Guarded) -> None:
    query = (await links_of(guarded))["originalUrl"].partition("?")[2]
    for method, template, rule in CLOSED:
        path = guarded.path(template)
        if path.endswith("/original"):
            continue
        answer = await guarded.ask(method, f"{path}?{query}")
        assert answer.status_code == (403 if rule is Permission.IMAGE else 401), (method, template)
    other = f"/customers/ben/photos/{new_job_id()}/original?{query}"
    assert (await guarded.ask("GET", other)).status_code == 403


async def test_a_link_shows_nothing_once_the_job_is_erased(guarded: Guarded) -> None:
    links = await links_of(guarded)
    erased = await guarded.ask("DELETE", f"/customers/ben/photos/{guarded.job_id}", guarded.key)
    assert erased.status_code == 204

    for kind in ("original", "generated"):
        assert (await guarded.ask("GET", links[f"{kind}Url"])).status_code == 404


async def test_without_a_secret_there_are_no_links(tmp_path: Path) -> None:
    async with running_service(tmp_path) as service:
        job_id = await service.submitted()
        answer = await service.client.get(f"/customers/ana/photos/{job_id}/links")
    assert (answer.status_code, problem(answer)["code"]) == (501, "links_unavailable")


# --- rates ------------------------------------------------------------------------------------------------


async def test_a_key_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    access = {"required": "always", "requests_per_second": 0.5, "burst": 3}
    async with running_service(tmp_path, access=access) as service:
        guarded = Guarded(service, kept_key(service.settings, "*")[1], "", "")
        statuses = [(await guarded.ask("GET", "/styles", guarded.key)).status_code for _ in range(3)]
        refused = await guarded.ask("GET", "/customers/ana", guarded.key)
        _, other = guarded.kept("*")
        assert (await guarded.ask("GET", "/styles", other)).status_code == 200
        assert (await guarded.ask("GET", "/healthz", guarded.key)).status_code == 200
    assert statuses == [200] * 3
    assert (refused.status_code, problem(refused)["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) in (1, 2)


# --- gRPC ---------------------------------------------------------------------------------------------------

REQUESTS: dict[str, Any] = {
    "SubmitPhoto": lambda customer_id, _: pb.SubmitPhotoRequest(customer_id=customer_id, photo=a_jpeg()),
    "UploadPhoto": lambda customer_id, _: [pb.SubmitPhotoRequest(customer_id=customer_id, photo=a_jpeg())],
    "GetStatus": lambda customer_id, job_id: pb.JobStatusRequest(customer_id=customer_id, job_id=job_id),
    "StreamStatus": lambda customer_id, _: pb.StatusStreamRequest(customer_id=customer_id),
    "KeepImage": lambda customer_id, job_id: pb.KeepImageRequest(customer_id=customer_id, job_id=job_id),
    "CancelJob": lambda customer_id, job_id: pb.CancelJobRequest(customer_id=customer_id, job_id=job_id),
}


@dataclass(frozen=True)
class Calls:
    """Calls of every gRPC method."""

    guarded: Guarded
    stub: ProfilePhotoJobServiceStub
    channel: grpc.aio.Channel

    async def code(self, method: str, authorization: str | None, customer_id: str = "ben") -> str:
        """How the call ends, or begins where it is let in."""
        metadata = () if authorization is None else (("authorization", authorization),)
        call = getattr(self.stub, method)(
            REQUESTS[method](customer_id, self.guarded.job_id), metadata=metadata, timeout=20
        )
        try:
            await (call.read() if isinstance(call, grpc.aio.UnaryStreamCall) else call)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        call.cancel()
        return "OK"


@pytest_asyncio.fixture
async def grpc_calls(guarded: Guarded) -> AsyncIterator[Calls]:
    server = grpc.aio.server()
    methods = JobMethods(guarded.service.photos, guarded.service.authorizer)
    add_job_service_to_server(methods, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Calls(guarded, ProfilePhotoJobServiceStub(channel), channel)
    await server.stop(None)


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_every_grpc_method_asks_for_a_key_of_the_customer(grpc_calls: Calls, method: str) -> None:
    guarded = grpc_calls.guarded
    revoked, revoked_key = guarded.kept("*")
    guarded.revoke(revoked)

    assert await grpc_calls.code(method, None) == "UNAUTHENTICATED"
    assert await grpc_calls.code(method, "Bearer x") == "UNAUTHENTICATED"
    assert await grpc_calls.code(method, f"Bearer {revoked_key}") == "UNAUTHENTICATED"
    for customer_id in ("ben", "cleo"):
        code = await grpc_calls.code(method, f"Bearer {guarded.of_ana}", customer_id)
        assert code == "PERMISSION_DENIED"
    code = await grpc_calls.code(method, f"Bearer {guarded.key}")
    assert code not in ("UNAUTHENTICATED", "PERMISSION_DENIED")


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_a_grpc_call_is_refused_before_its_message_is_read(grpc_calls: Calls, method: str) -> None:
    # On the wire it is the same call, whose message never comes.
    call = grpc_calls.channel.stream_stream(f"/{SERVICE.full_name}/{method}")(timeout=20)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await drained(call)

    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_grpc_upload_takes_no_place_before_its_key_is_known(
    grpc_calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = grpc_calls.guarded
    taken = []
    admit = guarded.service.authorizer.authorize

    async def noted(*arguments: Any) -> ApiKey | None:
        taken.append(guarded.service.photos.upload_limit.in_use)
        return await admit(*arguments)

    monkeypatch.setattr(guarded.service.authorizer, "authorize", noted)

    assert await grpc_calls.code("SubmitPhoto", "Bearer x") == "UNAUTHENTICATED"
    assert taken == [0]


async def drained(stream: Any) -> None:
    while await stream.read() is not grpc.aio.EOF:
        continue


async def test_a_grpc_stream_ends_when_its_key_is_revoked(grpc_calls: Calls) -> None:
    guarded = grpc_calls.guarded
    key, text = guarded.kept("ben")
    stream = grpc_calls.stub.StreamStatus(
        pb.StatusStreamRequest(customer_id="ben"), metadata=(("authorization", f"Bearer {text}"),)
    )
    await stream.read()
    guarded.revoke(key)

    async def is_refused() -> bool:
        return await grpc_calls.code("GetStatus", f"Bearer {text}") == "UNAUTHENTICATED"

    await wait_until(is_refused)
    await guarded.ask("POST", "/customers/ben", guarded.key, files={"photo": a_jpeg()})
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await drained(stream)
    assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_tells_what_it_may_do(guarded: Guarded) -> None:
    told = (await guarded.ask("GET", "/keys/self", guarded.of_ana)).json()
    assert (told.pop("keyId"), told.pop("name")) == (guarded.of_ana.split("_")[1], "for a test")
    assert told == {"customers": ["ana", "sdapi"], "isAdmin": False, "expiresAt": None}
