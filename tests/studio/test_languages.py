"""English and Portuguese."""

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from avatarforge.ingress.problems import PROBLEM_TYPES
from avatarforge.ingress.studio import FOLDER
from avatarforge.tracker.queue.attempts import ATTEMPT_FAILURES
from tests.integration.service import Service
from tests.studio.browser import PORTRAIT, job_shown, opened, send

pytestmark = pytest.mark.asyncio(loop_scope="package")

STRINGS = """async () => {
  const base = document.querySelector("script[type=module]").src.replace("main.js", "");
  return { en: (await import(base + "en.js")).default, pt: (await import(base + "pt.js")).default };
}"""


async def test_both_languages_have_the_same_strings_with_the_same_facts(page: Page) -> None:
    strings: dict[str, dict[str, str]] = await page.evaluate(STRINGS)
    facts = {
        language: {key: sorted(re.findall(r"\{\w+\}", text)) for key, text in texts.items()}
        for language, texts in strings.items()
    }
    assert facts["en"] == facts["pt"]
    assert all(text.strip() for texts in strings.values() for text in texts.values())


async def test_every_string_that_the_page_asks_for_is_there_and_none_is_left_over(page: Page) -> None:
    known = set((await page.evaluate(STRINGS))["en"])
    asked, families = set[str](), set[str]()
    for path in [*FOLDER.glob("*.js"), FOLDER / "index.html"]:
        text = path.read_text()
        asked |= set(re.findall(r"""\bt\("(\w+)\"""", text))
        asked |= set(re.findall(r"""data-t(?:-label|-placeholder)?="(\w+)\"""", text))
        families |= set(re.findall(r"\bt\(`(\w+_)\$\{", text))
    assert asked - known == set()
    spare = {key for key in known - asked if not key.startswith(tuple(families))}
    assert spare - NAMED_BY_DATA == set()


NAMED_BY_DATA = {
    *("studio", "gallery", "queue", "models"),
    *("asked", "model", "seed", "cropped", "backend", "attempts", "took"),
    *("size", "stepsDefault", "strength", "guidance", "imageGuidance", "family", "licence"),
    *("since", "perStep", "atWork", "waitingCount", "imagesGenerated", "loading", "device", "circuit"),
}
"""Views, and names of facts: their keys stand in tables."""


async def test_a_portuguese_browser_gets_portuguese(
    service: Service, browser: Browser, tmp_path: Path
) -> None:
    async with opened(browser, service.url, locale="pt-BR") as page:
        await expect(page.locator("html")).to_have_attribute("lang", "pt")
        await expect(page.locator("#forge")).to_have_text("Criar o avatar")
        await expect(page.locator("#dial-value")).to_have_text(re.compile(r"^\d,\d+$"))
        await page.get_by_label("Aquarela").check()
        await page.click("summary")
        await page.fill("#guidance", "1,5")
        await send(page)
        await expect(page.locator(".facts .badge")).to_have_text("Pronto")
        await expect(page.locator("#job-heading")).to_contain_text("Aquarela de ")
        assert service.recorded(await job_shown(page)).parameters.guidance == 1.5
        await expect(page.locator("#said")).to_have_text("O avatar está pronto.")


SENTENCES = """async (problems) => {
  const base = document.querySelector("script[type=module]").src.replace("main.js", "");
  const { sentenceOf } = await import(base + "problems.js");
  return problems.map(sentenceOf);
}"""

NEVER_HERE = {
    *("unsupported_media_type", "unsupported_content_encoding", "invalid_upload", "unknown_field"),
    *("delivery_not_found", "object_not_found", "overflow", "cancelled"),
    *("shard_leased", "shard_count_changed", "database_in_use", "overtaken"),
}
"""Codes of calls that the studio does not make, and of the command line."""


async def test_what_the_server_refuses_is_told_in_portuguese_with_its_values(
    service: Service, browser: Browser, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader, I am no picture.")
    service.script(service.generations.failing)
    failed = await service.submitted()
    await service.ended(failed)
    async with opened(browser, service.url, locale="pt-BR") as page:
        await page.set_input_files("#photo", tmp_path / "letter.txt")
        await expect(page.locator("#photo-error")).to_contain_text("letter.txt não é uma imagem. Envie uma")
        await page.click("text=Outra foto")
        await page.set_input_files("#photo", PORTRAIT)
        await page.click("summary")
        for field, text, expected in (
            ("steps", "900", "O número de passos é “900”, mas deve ser um número inteiro de 1 a 150."),
            ("guidance", "-1", "A orientação é “-1”, mas deve ser um número de 0 a 30."),
        ):
            await page.fill(f"#{field}", text)
            await page.click("#forge")
            await expect(page.locator(".field .error")).to_have_text(expected)
            await page.fill(f"#{field}", "")
        await page.goto(f"{service.url}/#/photo/ana/{failed}")
        await expect(page.locator("#facts .error")).to_have_text(re.compile("^O filtro do modelo reteve"))
        names = re.findall(r"\{(\w+)\}", (FOLDER / "problems.js").read_text())
        problem = {**dict.fromkeys(names, "x"), "detail": "English.", "expected": "one of a, b"}
        codes = sorted({kind.code for kind in PROBLEM_TYPES})
        told = await page.evaluate(SENTENCES, [{**problem, "code": code} for code in codes])
        assert {code for code, text in zip(codes, told, strict=True) if text == "English."} == NEVER_HERE

        # A job's own error has no values.
        errors = [{"code": code, "message": "English."} for code in ATTEMPT_FAILURES]
        told = await page.evaluate(SENTENCES, errors)
        for code, text in zip(ATTEMPT_FAILURES, told, strict=True):
            assert text != "English.", code
            assert re.search(r"[{}“]| {2}|^ | $| s\.", text) is None, (code, text)

        # Of an older or a later server: a value is missing.
        [text] = await page.evaluate(SENTENCES, [{"code": "limit_reached", "detail": "English."}])
        assert text == "English."


async def test_the_clock_is_that_of_the_browsers_country(service: Service, browser: Browser) -> None:
    await service.ended(await service.submitted())
    for locale, time in {"en-GB": r"\d\d:\d\d", "en-US": r"\d+:\d\d.[AP]M", "de-DE": r"\d\d:\d\d"}.items():
        async with opened(browser, service.url, "/#/gallery", locale=locale) as page:
            await expect(page.locator(".card time")).to_have_text(re.compile(f"^{time}$"))


async def test_the_language_can_be_changed_and_stays(page: Page) -> None:
    await page.click("#language-button")
    await expect(page.locator("#forge")).to_have_text("Criar o avatar")
    await expect(page.locator(".invitation h2")).to_have_text("Solte um retrato aqui")
    await page.reload()
    await expect(page.locator("html")).to_have_attribute("lang", "pt")
    await page.click("#language-button")
    await expect(page.locator("#forge")).to_have_text("Make the avatar")
