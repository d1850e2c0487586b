"""Linters of our OpenAPI document, and clients that are generated from it."""

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from avatarforge.ingress.app import create_documented_api
from tests.clients.runs import HERE, MODULES, PYTHON, run
from tests.integration.rest import a_jpeg
from tests.integration.service import running_service

TYPE_CHECK = (
    "--noEmit",
    "--strict",
    "--target",
    "es2022",
    "--module",
    "esnext",
    "--moduleResolution",
    "bundler",
)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(create_documented_api().openapi()))
    (tmp_path / "node_modules").symlink_to(MODULES)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    return path


async def test_linters_find_nothing_in_the_document(document: Path) -> None:
    rules = document.with_name("rules.yaml")
    rules.write_text('extends: ["spectral:oas"]\n')
    told = await run("node", MODULES / ".bin" / "redocly", "lint", document, "--format=json")
    assert json.loads(told)["totals"] == {"errors": 0, "warnings": 0, "ignored": 0}
    await run("node", MODULES / ".bin" / "spectral", "lint", "-r", rules, "-F", "hint", document)


async def with_python(document: Path) -> tuple[str | Path, ...]:
    # As its documentation says: it has to be told which media types are files.
    config = document.with_name("config.json")
    config.write_text(json.dumps({"content_type_overrides": {"image/png": "application/octet-stream"}}))
    generate = (PYTHON.with_name("openapi-python-client"), "generate", "--meta", "none", "--config", config)
    await run(*generate, "--path", document, "--output-path", document.with_name("forge_client"))
    return PYTHON, shutil.copy(HERE / "generated.py", document.parent)


async def with_hey_api(document: Path) -> tuple[str | Path, ...]:
    options = ("-i", document, "-o", document.with_name("forge-client"), "-c", "@hey-api/client-fetch")
    await run("node", MODULES / ".bin" / "openapi-ts", *options, cwd=document.parent)
    script = shutil.copy(HERE / "generated-hey.ts", document.parent)
    return "node", MODULES / ".bin" / "tsx", script


async def with_openapi_typescript(document: Path) -> tuple[str | Path, ...]:
    schema = document.with_name("schema.d.ts")
    await run("node", MODULES / ".bin" / "openapi-typescript", document, "-o", schema)
    script = shutil.copy(HERE / "generated-fetch.ts", document.parent)
    await run("node", MODULES / ".bin" / "tsc", *TYPE_CHECK, script, cwd=document.parent)
    return "node", MODULES / ".bin" / "tsx", script


@pytest.mark.parametrize("generate", [with_python, with_hey_api, with_openapi_typescript])
async def test_a_generated_client_uploads_follows_and_downloads(
    generate: Callable[[Path], Awaitable[tuple[str | Path, ...]]], document: Path, tmp_path: Path
) -> None:
    program = await generate(document)
    photo, data = tmp_path / "me.jpg", tmp_path / "data"
    photo.write_bytes(a_jpeg())
    data.mkdir()
    async with running_service(data) as service:
        service.generations.avatar = lambda task: bytes(1000)
        told = await run(*program, service.url, photo, cwd=tmp_path)

    assert told.split() == ["DONE", "5", "1000"]
