"""The commands that talk to a server, as they are typed, over the real service."""

import asyncio
import json
import os
import shlex
import signal
import sys
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from avatarforge.cli import app, terminal
from avatarforge.cli.forge import NoStandardInput, _print_how_to_save, _read_standard_input
from avatarforge.cli.options import SHORT_ID_LENGTH
from avatarforge.cli.photos import SAMPLE
from avatarforge.cli.terminal import ExitCode
from avatarforge.client import Client, ProfilePhotoJobStatus
from avatarforge.domain.changes import Fence
from avatarforge.domain.deliveries import DeliveryAttempt
from avatarforge.domain.status import ProcessingStatus
from avatarforge.persistence import DeliveryRepository, JobRepository, open_engine
from avatarforge.settings import PREFIX, DatabaseSettings, variables
from tests.events import subscriber_count
from tests.integration.rest import a_jpeg, empty_database
from tests.integration.service import SECONDS, Service, running_service
from tests.jobs import a_followed_job, finish, later, start, submission
from tests.keys import kept_key
from tests.receivers import Receiver
from tests.waiting import wait_until


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Shell:
    """Runs `avatarforge` where nothing but the server's address is set."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url, self._folder = url, folder

    async def __call__(self, *arguments: str) -> Done:
        """In a thread: a process of its own takes a second to start."""
        environ = {**dict.fromkeys(variables()), "AVATARFORGE_URL": self._url}
        result = await asyncio.to_thread(CliRunner(env=environ).invoke, app, list(arguments))
        assert isinstance(result.exception, SystemExit | None), result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    async def process(self, *arguments: str, seconds: float = 30, **variables: str) -> Done:
        process = await self.start(*arguments, **variables)
        out, err = await asyncio.wait_for(process.communicate(), seconds)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    async def start(
        self, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL, **variables: str
    ) -> asyncio.subprocess.Process:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "avatarforge",
            *arguments,
            env=environ | {"AVATARFORGE_URL": self._url, "COLUMNS": "120"} | variables,
            cwd=self._folder,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )


@pytest.fixture
def run(service: Service, tmp_path: Path) -> Shell:
    return Shell(service.url, tmp_path)


async def test_jobs_are_listed_newest_first_and_by_their_state(run: Shell, service: Service) -> None:
    done = await service.submitted("me", prompt="a knight\nin armour", style="pixel-art")
    await service.ended(done, "me")
    running = await service.running("me")
    await service.submitted("ben")

    table, listed = await run("jobs", "list"), await run("jobs", "list", "--json")
    only_done = await run("jobs", "list", "--state", "done", "--json")
    everyone = await run("jobs", "list", "--all", "--json")
    narrow = await run.process("jobs", "list", COLUMNS="40")

    assert [job["jobId"] for job in listed.json] == [running, done]
    assert [job["jobId"] for job in only_done.json] == [done]
    assert {job["customerId"] for job in everyone.json} == {"me", "ben"}
    lines = [line.split() for line in table.out.splitlines()[1:]]
    assert [line[1] for line in lines] == ["PROCESSING", "DONE"]
    for line, job_id in zip(lines, (running, done), strict=True):
        assert len(line[0]) < len(job_id), "the beginning is enough"
        assert (await run("jobs", "show", line[0], "--json")).json["jobId"] == job_id
    assert "pixel-art" in table.out
    assert "a knight in" in table.out
    assert [line for line in narrow.out.splitlines() if len(line) > 40] == []
    assert running in narrow.out


async def test_a_long_prompt_leaves_room_for_ids_states_and_times(
    run: Shell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = await service.submitted("ana", prompt="a knight in armour " * 15, style="pixel-art")
    await service.ended(done, "ana")

    for arguments in (("--customer", "ana"), ("--all",)):
        heading, line = (await run("jobs", "list", *arguments)).out.splitlines()
        assert line.startswith(f"{done[:SHORT_ID_LENGTH]}  DONE  ")
        assert line[heading.index("Accepted") :].split()[1:3] == ["s", "ago"]
        assert "pixel-art" in line
        assert len(line) <= 80
    assert line.split()[2] == "ana"
    assert "a knight" in (await run("jobs", "list", "--customer", "ana")).out

    monkeypatch.setenv("COLUMNS", "64")
    heading, line = (await run("jobs", "list", "--all")).out.splitlines()
    assert line.startswith(f"{done[:SHORT_ID_LENGTH]}  DONE   ana ")
    assert "Model" not in heading
    assert len(line) <= 64

    monkeypatch.setenv("COLUMNS", "80")
    long = "a" * 64
    await service.ended(await service.submitted(long), long)
    listed = (await run("jobs", "list", "--all")).out
    assert f"{done[:SHORT_ID_LENGTH]}  DONE" in listed
    assert max(map(len, listed.splitlines())) <= 80
    assert "".join(line[len(done[:SHORT_ID_LENGTH]) :] for line in listed.splitlines()).count("a") >= 64


async def test_a_job_is_shown_cancelled_made_anew_and_erased(run: Shell, service: Service) -> None:
    job_id = await service.running("me")

    shown = await run("jobs", "show", job_id)
    cancelled = await run("jobs", "cancel", job_id, "--json")
    again = await run("jobs", "retry", job_id, "--json")
    await service.ended(again.json["jobId"], "me")
    asked = await run("jobs", "erase", job_id)
    erased = await run("jobs", "erase", job_id, "--yes", "--json")

    assert "PROCESSING" in shown.out
    assert cancelled.json["status"] == "CANCELLED"
    assert again.json["retryOf"] == job_id
    assert (asked.code, "--yes" in asked.err) == (ExitCode.FAILURE, True), "nobody could be asked"
    assert erased.json == {"customerId": "me", "jobId": job_id, "erased": True}
    assert [job.job_id for job in service.records.list_jobs("me", None, 10)] == [again.json["jobId"]]


async def test_a_job_is_found_by_the_beginning_of_its_id_whoevers_it_is(run: Shell, service: Service) -> None:
    job_id = await service.submitted("ana")
    await service.ended(job_id, "ana")
    other = await service.submitted("ben")
    common = next(job_id[:n] for n in range(36, 0, -1) if other.startswith(job_id[:n]))

    assert (await run("jobs", "show", job_id, "--json")).json["customerId"] == "ana"
    assert (await run("jobs", "show", job_id[:-1], "--json")).json["customerId"] == "ana"
    several = await run("jobs", "show", common)
    assert (several.code, "Several jobs have ids that begin with" in several.err) == (ExitCode.USAGE, True)
    assert (await run("jobs", "show", common, "-c", "ben", "--json")).json["jobId"] == other
    nowhere = await run("jobs", "cancel", "f" * 18)
    assert (nowhere.code, "No job has an id that begins with" in nowhere.err) == (ExitCode.API_ERROR, True)
    shown = job_id[:SHORT_ID_LENGTH]
    assert (await run("jobs", "erase", shown, "--yes", "--json")).json["jobId"] == job_id


@pytest.mark.parametrize("command", ["show", "watch", "save", "cancel", "retry", "erase", "trace"])
async def test_too_little_of_an_id_names_no_job(run: Shell, service: Service, command: str) -> None:
    job_id = await service.submitted("me")
    await service.ended(job_id, "me")
    words = {"erase": ["--yes"], "save": ["--out", str(service.settings.data_dir / "out")]}.get(command, [])
    tried = ["", "0", job_id[:7], "unknown jobs"]
    tried += [job_id[: SHORT_ID_LENGTH - 1]] if command in ("cancel", "erase") else []

    for text in tried:
        refused = await run("jobs", command, text, *words)
        assert (refused.code, repr(text) in refused.err) == (ExitCode.USAGE, True), text
    assert service.recorded(job_id, "me").status is ProcessingStatus.DONE


async def test_a_key_for_one_customer_finds_its_jobs_alone(tmp_path: Path) -> None:
    async with running_service(tmp_path, access={"required": "always"}) as service:
        run = Shell(service.url, tmp_path)
        keys, ids = {}, {}
        for customer in ("ana", "ben"):
            keys[customer] = kept_key(service.settings, customer)[1]
            service.client.headers["Authorization"] = f"Bearer {keys[customer]}"
            ids[customer] = await service.submitted(customer)
        shown = await run("jobs", "show", ids["ana"], "--json", "--api-key", keys["ana"])
        assert shown.json["customerId"] == "ana"
        hidden = await run("jobs", "show", ids["ben"], "--api-key", keys["ana"])
        assert hidden.code == ExitCode.API_ERROR
        assert "--customer" not in hidden.err


@pytest.mark.parametrize("pattern", ["*", "m*"])
async def test_a_key_for_a_pattern_finds_the_default_customers_jobs(tmp_path: Path, pattern: str) -> None:
    async with running_service(tmp_path, access={"required": "always"}) as service:
        run = Shell(service.url, tmp_path)
        key = kept_key(service.settings, pattern)[1]
        service.client.headers["Authorization"] = f"Bearer {key}"
        job_id, other = await service.submitted("me"), await service.submitted("mia")

        for text in (job_id, job_id[:SHORT_ID_LENGTH]):
            assert (await run("jobs", "show", text, "--json", "--api-key", key)).json["jobId"] == job_id
        unseen = await run("jobs", "show", other, "--api-key", key)
        assert (unseen.code, f"{pattern}: name the job's with --customer" in unseen.err) == (
            *(ExitCode.API_ERROR, True),
        )
        shown = await run("jobs", "show", other, "--customer", "mia", "--json", "--api-key", key)
        assert shown.json["jobId"] == other


async def test_an_operator_finds_a_job_among_many_customers_with_one_call(
    run: Shell, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for customer in ("ana", "ben", "cleo"):
        job_id = await service.submitted(customer)
    send, paths = Client._send, list[str]()

    def record(client: Client, method: str, path: str, **arguments: Any) -> Any:
        paths.append(path)
        return send(client, method, path, **arguments)

    monkeypatch.setattr(Client, "_send", record)
    for text in (job_id, job_id[:-1]):
        assert (await run("jobs", "watch", text, "--after", "0")).code == 0
    assert paths == ["/healthz", "/keys/self", "/photos"] * 2


async def test_avatars_are_saved_once_they_are_done(run: Shell, service: Service, tmp_path: Path) -> None:
    first = await service.submitted("me", style="neon")
    await service.ended(first, "me")
    service.script(service.generations.failing)
    failed = await service.submitted("me")
    await service.ended(failed, "me")
    puppet = service.puppet()
    running = await service.submitted("ana")
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)

    late = await run("jobs", "save", running, "--timeout", "0", "--out", str(tmp_path))
    puppet.finish()
    saved = await run("jobs", "save", first, failed, running, "--out", str(tmp_path / "new"))

    assert (late.code, "still PROCESSING" in late.err) == (ExitCode.STILL_RUNNING, True)
    names = [f"me-neon-{first}.png", f"ana-{running}.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    assert [Path(line.split()[1]).name for line in saved.out.splitlines()] == names
    assert (saved.code, failed in saved.err) == (ExitCode.NO_AVATAR, True)


async def test_what_has_ended_is_saved_before_the_rest_is_waited_for(
    run: Shell, service: Service, tmp_path: Path
) -> None:
    done = await service.submitted("me")
    await service.ended(done, "me")
    puppet = service.puppet()
    running = await service.submitted("ana")
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)

    saving = asyncio.create_task(
        run("jobs", "save", running, done, running, "--out", str(tmp_path), "--json")
    )
    await wait_until((tmp_path / f"me-{done}.png").exists, SECONDS)
    puppet.finish()
    assert [each["jobId"] for each in (await saving).json] == [done, running]
    assert (tmp_path / f"ana-{running}.png").exists()


async def test_each_job_that_cannot_be_saved_is_told_and_the_others_are_saved_within_one_time(
    run: Shell, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, unwritable = await service.submitted("me"), await service.submitted("me")
    for job_id in (good, unwritable):
        await service.ended(job_id, "me")
    (tmp_path / f"me-{unwritable}.png").mkdir()
    service.script(service.generations.puppet(), service.generations.puppet())
    running = [await service.submitted("ana"), await service.submitted("ben")]
    wait, times = Client.wait, dict[str, float]()

    def record(client: Client, job: ProfilePhotoJobStatus, *, seconds: float = 600) -> ProfilePhotoJobStatus:
        times[job.job_id] = seconds
        return wait(client, job, seconds=seconds)

    monkeypatch.setattr(Client, "wait", record)
    named = [good[:8], *running, unwritable, good]
    result = await run("jobs", "save", *named, "--timeout", "0.5", "--out", str(tmp_path), "--json")

    assert result.code == ExitCode.USAGE
    assert [each["jobId"] for each in json.loads(result.out)] == [good]
    assert "Several jobs have ids" in result.err
    assert f"{unwritable}: " in result.err
    assert all(f"{job_id}: Job {job_id} is still" in result.err for job_id in running)
    assert times[running[1]] == 0, "the first has taken the time of both"


async def test_a_job_is_watched_to_its_end(run: Shell, service: Service) -> None:
    puppet = service.puppet()
    job_id = await service.submitted("me")
    await asyncio.wait_for(puppet.runs.wait(), SECONDS)
    process = await run.start("jobs", "watch", job_id, "--json")
    await wait_until(lambda: subscriber_count(service.live), 20)
    puppet.step(2)
    puppet.finish()
    out, err = await asyncio.wait_for(process.communicate(), 20)
    events = [json.loads(line) for line in out.splitlines()]

    assert process.returncode == 0, err
    assert events[0]["event"] == "snapshot"
    assert (events[-1]["event"], events[-1]["photo"]["status"]) == ("status", "DONE")
    assert "progress" in [event["event"] for event in events]

    told = await run("jobs", "watch", job_id, "--after", "0")
    states = [line.split()[2].rstrip(",") for line in told.out.splitlines()]
    assert states == ["PENDING", "PROCESSING", "DONE"]


async def test_a_job_is_told_of_whose_events_are_removed(run: Shell, service: Service) -> None:
    service.script(service.generations.done)
    async with Receiver().serving() as receiver:
        job_id = await service.submitted("me", callbackUrl=receiver.url())
        await service.ended(job_id, "me")
        await wait_until(lambda: service.deliveries.list_reports("me", job_id)[0].attempts)
    epoch = service.records.claim_shard(0)
    service.records.prune(0, epoch, datetime.now(UTC) + timedelta(days=1), 100)
    where = ("--data-dir", str(service.settings.data_dir))

    told = await run("jobs", "trace", job_id, *where)
    story = (await run("jobs", "trace", job_id, *where, "--json")).json

    assert (story["customerId"], story["status"], story["isComplete"]) == ("me", "DONE", False)
    assert [step["event"] for step in story["story"]] == ["webhook called"]
    assert "AVATARFORGE_TRACKER_EVENT_RETENTION_DAYS" in told.err


async def test_a_story_keeps_the_logs_order_where_clocks_differ(run: Shell, tmp_path: Path) -> None:
    (tmp_path / "avatarforge.db").write_bytes(empty_database())
    engine = open_engine(DatabaseSettings(), f"sqlite:///{tmp_path}/avatarforge.db")
    records, deliveries = JobRepository(engine), DeliveryRepository(engine)
    epoch, job = records.claim_shard(0), a_followed_job()
    started = start(job)
    ended = finish(started.job)
    slow = replace(started, event=replace(started.event, at=later(9)))
    records.commit(0, epoch, [submission(job), slow, ended])
    [delivery] = deliveries.list_pending(0)
    call = DeliveryAttempt(at=later(0), seconds=0.25, status=200, answer="")
    deliveries.record(delivery, call, Fence(0, epoch))
    engine.dispose()

    story = (await run("jobs", "trace", job.job_id, "--data-dir", str(tmp_path), "--json")).json["story"]

    assert [step["event"] for step in story] == ["submitted", "started", "done", "webhook called"]


async def test_a_jobs_story_is_told_from_the_database(run: Shell, service: Service) -> None:
    service.script(service.generations.lost, service.generations.done)
    async with Receiver().serving() as receiver:
        job_id = await service.submitted("me", callbackUrl=receiver.url())
        await service.ended(job_id, "me")
        await wait_until(lambda: service.deliveries.list_reports("me", job_id)[0].attempts)
    where = ("--data-dir", str(service.settings.data_dir))

    told = await run.process("jobs", "trace", job_id, *where)
    story = (await run("jobs", "trace", job_id, *where, "--json")).json
    await service.erase(job_id, "me")
    erased = (await run("jobs", "trace", job_id, *where, "--json")).json
    unknown = await run("jobs", "trace", "f" * 36, *where)
    beginning = (await run("jobs", "trace", job_id[:-2], *where, "--json")).json

    kinds = ["submitted", "started", "requeued", "started", "done"]
    assert [step["event"] for step in story["story"]] == [*kinds, "webhook called"]
    assert [step["attempt"] for step in story["story"]] == [0, 1, 1, 2, 2, 1]
    assert (story["jobId"], story["customerId"]) == (job_id, "me")
    assert story["story"][-1]["detail"].startswith("status 2")
    lines = told.out.splitlines()[8:]
    assert [line.split()[4] for line in lines] == [*kinds, "webhook"], told.out
    assert [step["event"] for step in erased["story"]] == [*kinds, "erased"]
    assert (story["status"], story["isComplete"]) == ("DONE", True)
    assert (erased["status"], erased["isComplete"]) == (None, True)
    assert beginning == erased
    assert (unknown.code, "f" * 36 in unknown.err) == (ExitCode.FAILURE, True)


async def test_watching_a_job_that_fails_has_a_code_of_its_own(run: Shell, service: Service) -> None:
    service.script(service.generations.failing)
    job_id = await service.submitted("me")
    await service.ended(job_id, "me")
    watched = await run("jobs", "watch", job_id)
    assert watched.code == ExitCode.NO_AVATAR
    assert "The picture was withheld." in watched.err


async def test_customers_are_listed_shown_and_erased(run: Shell, service: Service) -> None:
    for customer in ("ana", "ana", "ben"):
        await service.ended(await service.submitted(customer), customer)

    listed, shown = await run("customers", "list", "--json"), await run("customers", "show", "ana", "--json")
    cut, table = await run("customers", "list", "--limit", "1"), await run("customers", "show", "ana")
    erased = await run("customers", "erase", "ana", "--yes")

    assert [(each["customerId"], each["photoCount"]) for each in listed.json] == [("ana", 2), ("ben", 1)]
    assert [job["status"] for job in shown.json["photos"]] == ["DONE", "DONE"]
    assert "more than 1" in cut.err
    assert table.out.startswith("ana: 2 jobs")
    assert "with 2 jobs" in erased.err
    assert service.records.find_customer("ana") is None


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("jobs", "show", "f" * 36, "-c", "ana"), ExitCode.API_ERROR, f"no job with the id '{'f' * 36}'"),
        (("jobs", "list", "-c", "nobody"), ExitCode.API_ERROR, "No customer has the id 'nobody'"),
        (("jobs", "list", "--state", "odd"), ExitCode.USAGE, "pending"),
        (("jobs", "list", "--url", "http://127.0.0.1:1"), ExitCode.UNREACHABLE, "avatarforge up"),
        (("customers", "list", "--url", "forge"), ExitCode.FAILURE, "must be such as http://"),
        (("bench", "--url", "forge"), ExitCode.FAILURE, "must be such as http://"),
    ],
)
async def test_what_goes_wrong_is_one_sentence_and_a_code(
    run: Shell, service: Service, arguments: tuple[str, ...], code: int, words: str
) -> None:
    await service.submitted("ana")
    done = await run(*arguments)
    assert (done.code, done.out) == (code, "")
    assert words in done.err
    assert "Traceback" not in done.err


async def test_photos_that_fail_are_told_one_by_one(run: Shell, service: Service, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "me.png").write_bytes(SAMPLE.read_bytes())
    service.script(service.generations.failing)

    done = await run.process("forge", "me.png", "text.png", "--json")

    assert done.code == ExitCode.NO_AVATAR
    first, second = json.loads(done.out)
    assert (first["photo"], first["error"]["code"]) == ("me.png", "JobFailed")
    assert (second["photo"], second["error"]["code"]) == ("text.png", "photo_not_an_image")
    assert "me.png: failed after" in done.err


async def test_what_several_images_had_before_the_failure_is_saved(run: Shell, service: Service) -> None:
    service.generations.avatar = lambda task: a_jpeg(128, 128)
    puppet = service.puppet()
    process = await run.start("forge", "--variants", "8", "--json")
    await wait_until(puppet.runs.is_set, 20, "its job runs")
    for index in (0, 3):
        puppet.publish(index)
    puppet.fail()
    out, err = await asyncio.wait_for(process.communicate(), 30)

    assert process.returncode == ExitCode.NO_AVATAR
    assert "jobs save" not in err.decode()
    [made] = json.loads(out)
    assert (made["error"]["code"], made["job"]["status"]) == ("JobFailed", "FAILED")
    files = [Path(path) for path in made["avatars"]]
    assert [file.name for file in files] == ["portrait-avatar-0.png", "portrait-avatar-3.png"]
    images = service.recorded(made["job"]["jobId"], "me").images
    assert [file.read_bytes() for file in files] == [service.storage.get(each.stored.key) for each in images]
    with Image.open(made["beforeAfter"]) as sheet:
        assert sheet.size == (1120, 1232)


async def test_a_job_that_takes_too_long_goes_on_and_says_so(run: Shell, service: Service) -> None:
    puppet = service.puppet()
    done = await run.process("forge", "--timeout", "1", "--out", "my avatars")
    assert done.code == ExitCode.STILL_RUNNING
    assert "still PROCESSING after 1 s" in done.err
    puppet.finish()
    [job] = service.records.list_jobs("me", None, 10)
    assert await follow_the_hint(run, done.err) == f"me-{job.job_id}.png"


async def test_an_interrupted_forge_says_how_to_get_the_avatar(run: Shell, service: Service) -> None:
    puppet = service.puppet()
    process = await run.start("forge", "--out", "my avatars")
    await wait_until(lambda: subscriber_count(service.live), 20, "it follows its job")
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == ExitCode.INTERRUPTED
    puppet.finish()
    [job] = service.records.list_jobs("me", None, 10)
    assert await follow_the_hint(run, err.decode()) == f"me-{job.job_id}.png"


async def test_the_hint_names_the_server_where_it_is_another_than_the_default(
    run: Shell, service: Service
) -> None:
    puppet = service.puppet()
    port = service.url.rpartition(":")[2]
    late = ("forge", "--port", port, "--timeout", "1", "--out", "my avatars")
    done = await run.process(*late, AVATARFORGE_URL="")
    assert done.code == ExitCode.STILL_RUNNING
    assert "The avatar of 1 job is not saved yet. Save it with:" in done.err
    assert f"--url http://127.0.0.1:{port}" in done.err
    puppet.finish()
    await follow_the_hint(run, done.err)


async def follow_the_hint(run: Shell, said: str) -> str:
    """Type the command that was told, and return the name of the file that it makes."""
    [command] = [line.strip() for line in said.splitlines() if "jobs save" in line]
    saved = await run.process(*shlex.split(command)[1:])
    assert saved.code == 0, saved.err
    path = Path(saved.out.split(maxsplit=1)[1].strip())
    assert path.parent.name == "my avatars"
    assert await asyncio.to_thread(path.is_file)
    return path.name


async def test_a_photo_comes_from_standard_input_and_the_avatar_in_the_asked_format(
    run: Shell, service: Service
) -> None:
    service.generations.avatar = lambda task: a_jpeg(64, 64)
    process = await run.start("forge", "-", "--format", "jpeg", "--json", stdin=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(SAMPLE.read_bytes()), 30)
    assert process.returncode == 0, err
    [made] = json.loads(out)
    assert Path(made["avatars"][0]).name.startswith("stdin-avatar.")
    assert service.recorded(made["job"]["jobId"], "me").parameters.format == "jpeg"
    assert made["photo"] == "-"
    wrong = await run("forge", "--format", "gif")
    assert (wrong.code, "'gif'" in wrong.err) == (ExitCode.USAGE, True)


async def test_standard_input_that_holds_no_usable_photo_is_refused_by_its_name(
    run: Shell, service: Service
) -> None:
    async def forge(content: bytes, *arguments: str, **variables: str) -> Done:
        process = await run.start("forge", *arguments, stdin=asyncio.subprocess.PIPE, **variables)
        out, err = await asyncio.wait_for(process.communicate(content), 30)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    text = await forge(b"hello", "-", "--json")
    assert (json.loads(text.out)[0]["photo"], "Error: -: " in text.err) == ("-", True)
    large = await forge(bytes(1001), "-", AVATARFORGE_UPLOAD_MAX_BYTES="1000")
    assert (large.code, "larger than the limit of 1000 bytes" in large.err) == (ExitCode.FAILURE, True)
    twice = await run("forge", "-", "-")
    assert (twice.code, "'-' is given more than once" in twice.err) == (ExitCode.USAGE, True)
    assert service.records.list_customers(None, 10) == []


def test_closed_standard_input_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(NoStandardInput, match="closed"):
        _read_standard_input(1000)


def test_the_hint_starts_a_server_again_that_has_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.err, "_file", sys.stderr)
    ids = {"first": None, "second": None}
    url = "http://127.0.0.1:8123"
    _print_how_to_save(ids, "me", Path("out"), url, "AVATARFORGE_HTTP_PORT=8123 avatarforge up")
    assert capsys.readouterr().err.splitlines() == [
        "The avatars of 2 jobs are not saved yet. The server starts again with",
        "  AVATARFORGE_HTTP_PORT=8123 avatarforge up",
        "Save them then with:",
        f"  avatarforge jobs save first second --customer me --out out --url {url}",
    ]


async def test_forge_hands_its_options_on(run: Shell, service: Service) -> None:
    options = ("--no-crop", "--job-timeout", "500", "--start-timeout", "90.5", "--guidance", "5")
    options += ("--width", "64", "--height", "128")
    service.generations.avatar = lambda task: a_jpeg(128, 128)
    [made] = (await run.process("forge", *options, "--json")).json

    asked = service.recorded(made["job"]["jobId"], "me").parameters
    assert (asked.crop_to_face, asked.guidance) == (False, 5)
    assert (asked.width, asked.height) == (64, 128)
    assert (asked.timeout_seconds, asked.start_timeout_seconds) == (500, 90.5)

    refused = await run.process("forge", "--sampler", "Euler a")
    assert refused.code == ExitCode.API_ERROR
    assert "this model has its own sampler alone" in refused.err


async def test_of_several_avatars_all_are_saved_and_one_is_kept(
    run: Shell, service: Service, tmp_path: Path
) -> None:
    service.generations.avatar = lambda task: a_jpeg(128, 128)
    [made] = (await run.process("forge", "--variants", "3", "--vary", "style", "--json")).json
    job_id = made["job"]["jobId"]
    kept = await run("jobs", "keep", job_id, "2", "--json")
    shown, listed = await run("jobs", "show", job_id), await run("jobs", "list")
    missing, again = await run("jobs", "keep", job_id, "3"), await run("jobs", "keep", job_id, "2")
    [saved] = (await run("jobs", "save", job_id, "--json", "--out", str(tmp_path))).json
    story = (await run("jobs", "trace", job_id, "--data-dir", str(service.settings.data_dir), "--json")).json

    assert service.recorded(job_id, "me").parameters.vary == "style"
    images = [service.storage.get(image.stored.key) for image in service.recorded(job_id, "me").images]
    for paths, stem in ((made["avatars"], "portrait-avatar"), (saved["avatars"], f"me-{job_id}")):
        files = [Path(path) for path in paths]
        assert [file.name for file in files] == [f"{stem}-{index}.png" for index in range(3)]
        assert [file.read_bytes() for file in files] == images
    with Image.open(made["beforeAfter"]) as sheet:
        assert sheet.size == (1120, 1232)
    assert (kept.json["kept"], "DONE, image 2 kept" in again.out) == (2, True)
    assert ["seed", str(made["job"]["seed"])] in [line.split() for line in shown.out.splitlines()]
    assert [("Images" in line, "3 of 3" in line) for line in listed.out.splitlines()] == [
        (True, False),
        (False, True),
    ]
    told = dict(line.split("  ", 1) for line in shown.out.splitlines() if line.startswith("image "))
    assert ["kept" in told[f"image {index}"] for index in range(3)] == [False, False, True]
    assert (missing.code, "0, 1, 2" in missing.err) == (ExitCode.API_ERROR, True)
    assert [(step["event"], step["detail"]) for step in story["story"]][2:] == [
        ("image", "1 of 3 images"),
        ("image", "2 of 3 images"),
        ("done", "local, avatar-mini"),
        ("kept", "image 2"),
    ]


async def test_what_a_job_made_before_it_failed_is_saved(
    run: Shell, service: Service, tmp_path: Path
) -> None:
    puppet = service.puppet()
    job_id = await service.submitted("me", variants="3")
    puppet.publish(1)
    puppet.fail()
    await service.ended(job_id, "me")

    saved = await run("jobs", "save", job_id, "--out", str(tmp_path / "new"))

    assert (saved.code, "withheld" in saved.err) == (ExitCode.NO_AVATAR, True)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"me-{job_id}-1.png"]


async def test_a_bench_measures_and_leaves_nothing_behind(run: Shell, service: Service) -> None:
    report = (await run.process("bench", "--photos", "5", "--at-once", "2", "--json")).json
    assert (report["photos"], report["atOnce"], report["models"]) == (5, 2, ["avatar-mini"])
    assert 0 < report["uploadToAccepted"]["p50"] <= report["uploadToAvatar"]["max"]
    assert report["avatarsPerSecond"] == pytest.approx(5 / report["seconds"], rel=0.01)
    assert service.records.list_customers(None, 10) == []
    assert service.objects() == []


async def test_a_bench_that_cannot_begin_says_why(run: Shell, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    done = await run.process("bench", "--photos", "1", "--photo", "text.png")
    assert done.code == ExitCode.API_ERROR
    assert "is not an image" in done.err
