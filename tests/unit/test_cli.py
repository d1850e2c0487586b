"""The `avatarforge` command, as far as it goes without a server."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import avatarforge
from avatarforge.cli import app
from avatarforge.cli.comparison import write_comparison
from avatarforge.cli.jobs import _format_job
from avatarforge.cli.photos import list_photos
from avatarforge.cli.terminal import ExitCode
from avatarforge.domain.generations import GenerationProgress
from avatarforge.domain.jobs import ProfilePhotoJob
from avatarforge.imaging.formats import PHOTO_ENDINGS, PhotoFormat
from avatarforge.messages import LiveJob
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.persistence.upgrade import latest
from avatarforge.settings import load_settings, variables
from avatarforge.storage import open_storage
from avatarforge.storage.keys import original_key
from tests.factories import NOON, a_variant
from tests.factories import a_job as an_asked_job
from tests.jobs import a_job, submission
from tests.pictures import png

TREE = Path(avatarforge.__file__).parents[1]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in variables():
        # Set first, so that what the command line puts there is taken away again: options are variables.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_the_version_is_the_packages() -> None:
    assert run("version").stdout.strip() == avatarforge.__version__
    assert json.loads(run("version", "--json").stdout) == {"version": avatarforge.__version__}


def test_a_jobs_line_tells_its_steps_or_place_beside_its_images() -> None:
    waiting = an_asked_job()
    waiting = replace(waiting, parameters=replace(waiting.parameters, variants=3))
    job = waiting.start(NOON)
    job = job.publish(a_variant(job, 1), attempt=1).keep(1)
    progress = GenerationProgress(step=40, total_steps=60)

    def line(live: LiveJob) -> str:
        return _format_job(live.to_message()).partition("[/]")[2]

    assert line(LiveJob(job=waiting, queue_position=7)) == ", number 7 in the queue, 0 of 3 images"
    assert line(LiveJob(job=job, progress=progress)) == ", step 40 of 60, 1 of 3 images, image 1 kept"
    assert line(LiveJob(job=job.cancel(NOON))) == ", 1 of 3 images, image 1 kept"


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    assert all(command in text for command in ("up", "forge", "db", "models", "settings", "version"))


@pytest.mark.parametrize("arguments", [["--help"], ["version"], ["up", "--help"], ["forge", "--help"]])
def test_help_imports_nothing_that_takes_seconds(arguments: list[str]) -> None:
    code = (
        "import sys; from avatarforge.cli import app\n"
        f"try: app({arguments!r})\n"
        "except SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'sqlalchemy', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_settings_table_holds_every_variable_with_its_meaning() -> None:
    rows = {row["variable"]: row for row in json.loads(run("settings", "--json").stdout)}
    assert set(rows) == set(variables())
    assert rows["AVATARFORGE_HTTP_PORT"] == {
        "name": "http.port",
        "variable": "AVATARFORGE_HTTP_PORT",
        "value": 8000,
        "default": 8000,
        "meaning": "Port that REST and SSE listen on.",
    }
    assert [name for name, row in rows.items() if not row["meaning"]] == []
    table = run("settings").stdout
    assert all(name in table for name in rows)


def test_the_settings_table_shows_what_is_in_force_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATARFORGE_HTTP_PORT", "8123")
    monkeypatch.setenv("AVATARFORGE_DATABASE_URL", "mysql+pymysql://me:hidden@host/db")
    assert "8123 (default 8000)" in run("settings").stdout
    assert "hidden" not in run("settings").stdout + run("settings", "--json").stdout


def test_the_page_of_the_rest_interface_has_every_operation_and_schema() -> None:
    page = (TREE / "docs" / "rest.md").read_text()
    document = json.loads(run("openapi").stdout)
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"### {method.upper()} {path}\n" in page
    for name in document["components"]["schemas"]:
        assert f"\n### {name}\n" in page
    assert "| `steps` | integer, at least 1, at most 150 |" in page


def test_every_exit_code_is_written_down() -> None:
    page, help_text = (TREE / "docs" / "commands.md").read_text(), run("--help").stdout
    for code in ExitCode:
        assert f"| {code.value} |" in page
        assert re.search(rf"\b{code.value} \w", help_text)


def test_an_unknown_variable_is_one_sentence_with_the_near_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AVATARFORGE_HTTP_PROT", "1")
    result = run("settings")
    assert result.exit_code == 1
    assert "Did you mean AVATARFORGE_HTTP_PORT?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_option_is_a_usage_error() -> None:
    assert run("up", "--nonsense").exit_code == 2


def test_an_impossible_port_is_told_with_its_variable() -> None:
    result = run("up", "--port", "70000")
    assert result.exit_code == 1
    assert "AVATARFORGE_HTTP_PORT" in result.stderr


def test_a_certificate_that_cannot_sign_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("certificate", "private_key"):
        (tmp_path / name).write_text("hello")
        monkeypatch.setenv(f"AVATARFORGE_PROVENANCE_{name.upper()}", str(tmp_path / name))
    result = run("up")
    assert result.exit_code == 1
    assert "Avatars cannot be signed" in result.stderr
    assert not (tmp_path / "data").exists()


def test_forging_a_photo_that_is_not_there_is_one_sentence() -> None:
    result = run("forge", "nowhere.jpg")
    assert result.exit_code == 1
    assert "There is no photo 'nowhere.jpg'." in result.stderr


def test_forging_without_a_server_says_how_to_start_one() -> None:
    result = run("forge", "--port", "1")
    assert result.exit_code == ExitCode.UNREACHABLE
    assert "`avatarforge up`" in result.stderr
    assert re.search(r"http://127\.0\.0\.1:1\b", result.stderr)


def test_an_address_that_is_no_url_is_told_with_one_that_is() -> None:
    result = run("forge", "--url", "forge:8000")
    assert result.exit_code == ExitCode.FAILURE
    assert "'forge:8000', but it must be such as http://127.0.0.1:8000" in result.stderr


@pytest.mark.parametrize("text", ["", "just words", "applications: []", "{"])
def test_a_file_that_is_no_serve_config_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    result = run("up", "--config", "broken.yaml")
    assert result.exit_code == 1
    assert "broken.yaml" in result.stderr


def test_the_database_is_upgraded_and_shown(tmp_path: Path) -> None:
    before = run("db", "current", "--json")
    assert before.exit_code == 1
    assert json.loads(before.stdout) == {"current": None, "latest": latest(), "upToDate": False}
    refused = run("db", "verify")
    assert refused.exit_code == 1
    assert "There is no database" in refused.stderr
    assert not (tmp_path / "data").exists(), "looking makes no database"

    assert run("db", "upgrade").exit_code == 0
    after = run("db", "current", "--json")
    assert after.exit_code == 0
    assert json.loads(after.stdout) == {"current": latest(), "latest": latest(), "upToDate": True}


def a_stored_job() -> ProfilePhotoJob:
    job = a_job()
    return replace(job, original=replace(job.original, key=original_key("ana", job.job_id, "image/png")))


def test_images_that_storage_lacks_are_named(tmp_path: Path) -> None:
    run("db", "upgrade")
    assert run("db", "verify").exit_code == 0
    settings = load_settings()
    records = JobRepository(open_engine(settings.database, settings.database_url))
    there, gone = (a_stored_job() for _ in range(2))
    records.commit(0, records.claim_shard(0), [submission(there), submission(gone)])
    records.close()
    open_storage(settings).put(there.original.key, BytesIO(b"photo"), "image/png")

    told = run("db", "verify")
    assert (told.exit_code, told.stdout) == (1, f"{gone.original.key}\n")
    assert json.loads(run("db", "verify", "--json").stdout) == {"recorded": 2, "missing": [gone.original.key]}


def test_the_carried_model_is_listed_with_its_styles() -> None:
    listed = json.loads(run("models", "list", "--json").stdout)
    mini = next(model for model in listed if model["name"] == "avatar-mini")
    assert mini["serves"] is True
    assert "pixel-art" in mini["styles"]
    assert "avatar-mini" in run("models", "list").stdout


def test_before_and_after_stand_side_by_side(tmp_path: Path) -> None:
    green, red = (png(Image.new("RGB", (64, 64), colour)) for colour in ((30, 200, 30), (200, 30, 30)))
    write_comparison((green, "me.jpg"), [(red, "avatar-mini, seed " + "9" * 100)], tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as both:
        assert both.size == (1120, 632)
        assert both.getpixel((32 + 256, 32 + 256)) == (30, 200, 30)
        assert both.getpixel((1120 - 32 - 256, 32 + 256)) == (200, 30, 30)
        assert both.getpixel((2, 2)) == both.getpixel((1117, 629))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("mysql", "cannot be read. It is such as mysql+pymysql://user:password@host/name"),
        ("mysql+pymysql://forge:secret@db:port/name", "cannot be read"),
        ("mysql+pymysql://forge:secret@db", "names no database"),
        ("mysql+pymysql://forge:secret@db/name?conect_timeout=3", "Did you mean 'connect_timeout'?"),
        ("mysql+pymysql://forge:secret@db/name?ssl_ca=/absent.pem", "ssl_ca=/absent.pem, a file that is not"),
        ("mysql+pymysql://forge:secret@127.0.0.1:1/name", "does not answer: (2003"),
        ("postgresql://forge:secret@db/name", "must begin with 'sqlite' or 'mysql+pymysql'"),
    ],
)
@pytest.mark.parametrize(
    "command", [["db", "current"], ["db", "upgrade"], ["keys", "list"], ["jobs", "trace", "019a1b2c"]]
)
def test_a_database_that_cannot_be_used_is_one_sentence(
    command: list[str], url: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AVATARFORGE_DATABASE_URL", url)
    monkeypatch.setenv("COLUMNS", "300")
    result = CliRunner().invoke(app, command)
    assert (result.exit_code, told in result.stderr) == (1, True), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "secret" not in result.stderr


def test_a_folder_stands_for_its_photos(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c.png").mkdir()
    assert [photo.name for photo in list_photos(tmp_path)] == ["a.png", "b.JPG"]
    result = run("forge", str(tmp_path / "c.png"))
    assert result.exit_code == ExitCode.FAILURE
    assert "c.png' has no photo: no file that ends with one of .jpg, .jpeg" in result.stderr


def test_every_format_that_is_taken_is_found_in_folders() -> None:
    assert set(PHOTO_ENDINGS) == set(PhotoFormat)
    known = Image.registered_extensions()
    for taken, endings in PHOTO_ENDINGS.items():
        assert {known[ending] for ending in endings if ending in known} <= {taken.value}, taken
