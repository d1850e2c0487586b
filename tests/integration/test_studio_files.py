"""The studio's page and files as the service sends them; what a browser does with them is in tests/studio."""

import gzip
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from avatarforge.ingress.studio import FOLDER, Studio
from tests.integration.rest import Rest, a_jpeg, finished, problem

MOST_BYTES = 150_000
MOST_SECONDS = 4
SLOW_BYTES_PER_SECOND = 50_000
HEADER_BYTES = 700
"""Of an answer, with the beginning of its packet and the like."""


async def page_and_files(rest: Rest) -> tuple[str, list[str]]:
    page = (await rest.client.get("/")).text
    return page, [f"/{path}" for path in re.findall(r'(?:src|href)="(studio/[^"]+)"', page)]


async def test_all_that_the_page_loads_is_there_and_together_it_is_small(rest: Rest) -> None:
    page, files = await page_and_files(rest)
    answers, size = [], len(gzip.compress(page.encode()))
    for path in dict.fromkeys(files):
        async with rest.client.stream("GET", path) as answer:
            size += len(b"".join([chunk async for chunk in answer.aiter_raw()]))
        answers.append(answer)
    assert len(answers) > 20
    assert {answer.status_code for answer in answers} == {200}
    assert size < MOST_BYTES
    # Nothing is found late, so the line's speed alone says when the page can be used.
    assert (size + HEADER_BYTES * len(answers)) / SLOW_BYTES_PER_SECOND <= MOST_SECONDS


async def test_the_page_names_every_module_so_that_none_is_found_late(rest: Rest) -> None:
    page, _ = await page_and_files(rest)
    named = set(re.findall(r'rel="modulepreload" href="studio/[0-9a-f]{16}/([^"]+)"', page))
    assert named == {path.name for path in FOLDER.glob("*.js")}


async def test_the_page_may_run_nothing_inline_and_load_from_nowhere_else(rest: Rest) -> None:
    answer = await rest.client.get("/")
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src", "font-src")} == {"'self'"}
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<style|style=|<script(?! (?:type=\"module\" )?src=)| on\w+=", answer.text)
    text = answer.text + "".join(path.read_text() for path in FOLDER.glob("*.[jc]s*"))
    # Names of XML and the addresses of standards in comments are no requests.
    assert set(re.findall(r"https?://[^\s\"'/)]+", text)) <= {
        "http://www.w3.org",
        "http://iptc.org",
        "http://cv.iptc.org",
        "https://html.spec.whatwg.org",
        "https://pkware.cachefly.net",
        "https://www.w3.org",
    }


async def test_files_are_kept_for_ever_and_the_page_is_asked_for_again(rest: Rest) -> None:
    _, files = await page_and_files(rest)
    assert (await rest.client.get("/")).headers["cache-control"] == "no-cache"
    for path in ("/", files[0]):
        etag = (await rest.client.get(path)).headers["etag"]
        again = await rest.client.get(path, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")
    assert "immutable" in (await rest.client.get(files[0])).headers["cache-control"]
    of_another_release = re.sub(r"/studio/\w+/", "/studio/0123456789abcdef/", files[0])
    assert (await rest.client.get(of_another_release)).headers["cache-control"] == "no-cache"


async def test_a_client_that_takes_gzip_gets_less(rest: Rest) -> None:
    _, files = await page_and_files(rest)
    [sheet] = [path for path in files if path.endswith(".css")]
    async with rest.client.stream("GET", sheet, headers={"Accept-Encoding": "gzip"}) as answer:
        zipped = b"".join([chunk async for chunk in answer.aiter_raw()])
    plain = await rest.client.get(sheet, headers={"Accept-Encoding": "identity"})
    assert answer.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(zipped) == plain.content
    assert len(zipped) < len(plain.content) / 2
    assert answer.headers["etag"] != plain.headers["etag"]
    assert plain.headers["vary"] == answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    "name", ["nothing.js", "index.html", "figtree.LICENSE.txt", "../studio.py", "%2e%2e/studio.py"]
)
async def test_nothing_else_is_served(rest: Rest, name: str) -> None:
    answer = await rest.client.get(f"/studio/-/{name}")
    assert (answer.status_code, problem(answer)["code"]) == (404, "not_found")


def test_another_file_makes_other_addresses(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<!-- modules -->")
    (tmp_path / "main.js").write_text("one()")
    first = Studio(tmp_path).version
    assert Studio(tmp_path).version == first
    (tmp_path / "main.js").write_text("two()")
    assert Studio(tmp_path).version != first


async def test_the_square_is_what_the_avatar_is_made_from(rest: Rest) -> None:
    wide = await finished(rest, await rest.submitted("ana", a_jpeg(96, 64)))
    by_hand = await finished(rest, await rest.submitted("ana", a_jpeg(80, 80), cropToFace="false"))
    tall = await finished(rest, await rest.submitted("ana", a_jpeg(96, 64), width="64", height="128"))
    for job, size in ((wide, (64, 64)), (by_hand, (80, 80)), (tall, (32, 64))):
        path = f"/customers/ana/photos/{job.job_id}/original"
        answer = await rest.client.get(path, params={"square": "true"})
        assert answer.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.content)).size == size
        known = {"If-None-Match": answer.headers["etag"]}
        assert (await rest.client.get(path, params={"square": "true"}, headers=known)).status_code == 304
        assert (await rest.client.get(path, headers=known)).status_code == 200


async def test_the_square_of_an_unknown_job_is_a_problem(rest: Rest) -> None:
    answer = await rest.client.get("/customers/ana/photos/nobody/original", params={"square": "true"})
    assert (answer.status_code, problem(answer)["code"]) == (404, "job_not_found")
