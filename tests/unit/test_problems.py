"""The one table that says which error is which answer."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from fastapi import FastAPI, Query

from avatarforge.domain import errors
from avatarforge.domain.errors import AvatarForgeError
from avatarforge.ingress.problems import (
    PROBLEM_TYPES,
    add_problem_handlers,
    error_response,
    find_customer_id_error,
    problem_for,
    problem_type_of,
)


def family(root: type[AvatarForgeError] = AvatarForgeError) -> Iterator[type[AvatarForgeError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("avatarforge"):
            yield from family(child)


EXAMPLES: list[tuple[AvatarForgeError, int, dict[str, Any]]] = [
    (
        errors.InvalidRequest("steps", "ten", "a whole number"),
        422,
        {"field": "steps", "value": "ten", "expected": "a whole number"},
    ),
    (errors.MissingPhoto(), 422, {}),
    (errors.PhotoTooLarge(20), 413, {"limit": 20}),
    (
        errors.InvalidPhotoDimensions(8, 9, 32, 1000),
        422,
        {"width": 8, "height": 9, "minSide": 32, "maxPixels": 1000},
    ),
    (errors.UnsupportedMediaType("text/plain"), 415, {"contentType": "text/plain"}),
    (errors.JobNotFound("ana", "1"), 404, {"customerId": "ana", "jobId": "1"}),
    (errors.IllegalTransition("DONE", "CANCELLED"), 409, {"current": "DONE"}),
    (errors.StorageFull("no room", 9), 503, {"part": "object storage", "retryAfter": 9}),
    (errors.ModelUnusable("sd", "its file is gone"), 500, {"model": "sd"}),
]


@pytest.mark.parametrize("kind", list(family()), ids=lambda kind: kind.__name__)
def test_every_error_of_the_family_has_a_row_of_its_own(kind: type[AvatarForgeError]) -> None:
    answer = PROBLEM_TYPES[kind]

    assert 400 <= answer.http_status <= 599
    assert hasattr(grpc.StatusCode, answer.grpc_status)


def test_every_error_that_means_come_again_is_a_503() -> None:
    assert {problem_type_of(kind).http_status for kind in family(errors.Unavailable)} == {503}


def test_an_error_that_the_table_does_not_know_is_answered_like_its_parent() -> None:
    class NewError(errors.StorageFull):
        __module__ = "elsewhere"

    assert problem_type_of(NewError("x")) == PROBLEM_TYPES[errors.StorageFull]


@pytest.mark.parametrize(("error", "status", "facts"), EXAMPLES, ids=lambda value: type(value).__name__)
def test_a_problem_carries_code_sentence_and_facts(
    error: AvatarForgeError, status: int, facts: dict[str, Any]
) -> None:
    assert problem_for(error, "/customers/ana") == {
        "type": f"urn:avatarforge:problem:{error.code}",
        "title": PROBLEM_TYPES[type(error)].title,
        "status": status,
        "detail": str(error),
        "instance": "/customers/ana",
        "code": error.code,
        **facts,
    }


def test_a_problem_does_not_tell_why_a_part_of_ours_is_away() -> None:
    error = errors.DatabaseUnavailable("can't connect to db-7.internal:3306")

    assert "db-7" not in json.dumps(problem_for(error, "/"))


def test_what_came_from_outside_is_cut_short() -> None:
    document = problem_for(errors.InvalidRequest("prompt", "x" * 5000, "shorter"), "/")

    assert len(json.dumps(document)) < 600


def test_a_503_says_when_to_come_again() -> None:
    response = error_response(errors.TrackerUnavailable("gone", retry_after=7), {"path": "/customers/ana"})

    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("raw_path", "named"),
    [
        (b"/customers/a%2Fb", "a/b"),
        (b"/customers/a%20b/photos", "a b"),
        (b"/customers/%C3%A9va", "éva"),
        (b"/customers/", ""),
        (b"/customers//photos", ""),
        (b"/customers/%FF", "\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_malformed_customer_id_is_seen_in_the_path_as_it_was_sent(raw_path: bytes, named: str) -> None:
    error = find_customer_id_error({"raw_path": raw_path, "path": "/"})

    assert error is not None
    assert error.value == named


@pytest.mark.parametrize("raw_path", [b"/customers/ana/photos/1/2", b"/customers", b"/", b"/nowhere/a%2Fb"])
def test_a_path_with_a_good_customer_id_or_none_is_not_blamed(raw_path: bytes) -> None:
    assert find_customer_id_error({"raw_path": raw_path, "path": "/"}) is None


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("", "count is None, but it must be given."),
        ("?count=ten", "count is 'ten', but it must be a whole number."),
        ("?count=0", "count is '0', but it must be 1 or more."),
        ("?count=10", "count is '10', but it must be 9 or less."),
        ("?count=1&share=nan", "share is 'nan', but it must be a number."),
        ("?count=1&share=much", "share is 'much', but it must be a number."),
        (
            "?count=1&flag=perhaps",
            "flag is 'perhaps', but it must be otherwise: Input should be a valid boolean",
        ),
    ],
)
async def test_a_parameter_that_the_framework_refuses_is_named_in_our_words(query: str, detail: str) -> None:
    api = FastAPI()
    add_problem_handlers(api)

    @api.get("/")
    def call(
        count: int = Query(ge=1, le=9), share: float = Query(1, allow_inf_nan=False), flag: bool = False
    ) -> None: ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://test") as client:
        answer = await client.get(f"/{query}")

    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_request"
    assert answer.json()["detail"].startswith(detail)
