"""`avatarforge jobs`: list, show, watch, save, trace, cancel, keep, retry and erase the jobs of a server."""

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from avatarforge.cli.keys import open_database
from avatarforge.cli.options import (
    DEFAULT_CUSTOMER,
    MIN_ID_LENGTH,
    SHORT_ID_LENGTH,
    CustomerOption,
    DataDirOption,
    JobArgument,
    JsonOption,
    OwnerOption,
    YesOption,
    client_command,
    to_variables,
    validate_id_beginning,
)
from avatarforge.cli.terminal import ExitCode, confirm, err, get_exit_code, out, print_error, report_errors
from avatarforge.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from avatarforge.client import Client, DeliveryMessage, JobEvent, ProfilePhotoJobStatus
    from avatarforge.domain.changes import LoggedChange
    from avatarforge.domain.deliveries import DeliveryReport

app = typer.Typer(help="The jobs of a server.", no_args_is_help=True)

_COLOURS = {"PENDING": "cyan", "PROCESSING": "blue", "DONE": "green", "FAILED": "red", "CANCELLED": "yellow"}
_MIN_TABLE_COLUMNS = 64
"""Of a terminal: with fewer, a job takes two lines."""
_COLUMN_GAP = 2
_MIN_PROMPT_COLUMNS, _MIN_CUSTOMER_COLUMNS = 10, 10
_OPTIONAL = ("Model", "Prompt", "Took", "Style", "Images")
"""Columns that are left out in this order where a terminal has no room for them."""


def _parse_state(text: str | None) -> str | None:
    if text is not None and text.upper() not in _COLOURS:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_COLOURS).lower()}.", param_hint="--state")
    return None if text is None else text.upper()


@app.command("list")
@client_command
def list_jobs(
    client: "Client",
    customer: CustomerOption = DEFAULT_CUSTOMER,
    everyone: Annotated[bool, typer.Option("--all", help="The latest job of every customer.")] = False,
    state: Annotated[
        str | None,
        typer.Option(
            callback=_parse_state, help="Only these: pending, processing, done, failed or cancelled."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    found: Iterable[ProfilePhotoJobStatus] = client.list_jobs(customer)
    if everyone:
        latest = (each.latest_photo for each in client.list_customers())
        found = sorted(
            (job for job in latest if job is not None), key=lambda job: job.created_at, reverse=True
        )
    jobs = list(islice((job for job in found if state in (None, job.status)), limit))
    if as_json:
        out.print_json(data=[job_to_json(job) for job in jobs])
        return
    if not jobs:
        err.print("There are no such jobs.")
        return
    print_jobs(jobs, with_customer=everyone)


@app.command("show")
@client_command
def show_job(
    client: "Client", job: JobArgument, customer: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """Show one job: its state, times, error and webhooks."""
    found = _find_job(client, job, customer)
    deliveries = client.list_deliveries(found)
    if as_json:
        webhooks = [json.loads(delivery.json_bytes()) for delivery in deliveries]
        out.print_json(data={**job_to_json(found), "deliveries": webhooks})
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _describe_job(found, deliveries):
        table.add_row(label, value)
    out.print(table)


@app.command("watch")
@client_command
def watch_jobs(
    client: "Client",
    job: Annotated[str | None, typer.Argument(help="Only this one, and until it ends.")] = None,
    customer: OwnerOption = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin with what came after this event (`seq`).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a customer's jobs, a line for each change, until Ctrl-C. With --json one object a line.

    Without a job or a customer it is the customer 'me'.
    """
    from avatarforge.client import JobFailed, JobProgressed

    target = customer or DEFAULT_CUSTOMER if job is None else _find_job(client, job, customer)
    last = None
    with err.status("Waiting for changes …") as line:
        for event in client.watch(target, after=after):
            if as_json:
                out.print(json.dumps(_event_to_json(event)), highlight=False, markup=False)
            elif isinstance(event, JobProgressed):
                line.update(_format_job(event.job))
            else:
                _print_event(event)
            last = _get_job(event) or last
    if job is not None and last is not None and last.status != "DONE":
        raise JobFailed(last)


@app.command("trace")
@report_errors
def trace_job(job: JobArgument, data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Tell a job's story from the database: every change and every call of its webhook.

    The ids are those of the log lines and of the traces. Changes are kept for as long as events are
    (AVATARFORGE_TRACKER_EVENT_RETENTION_DAYS), the job and its calls until it is erased.
    """
    from avatarforge.domain.status import EventKind
    from avatarforge.persistence import DeliveryRepository, JobRepository

    validate_id_beginning(job)
    settings = load_settings(environ={**os.environ, **to_variables(data_dir)})
    with open_database(settings) as engine:
        records = JobRepository(engine)
        job, *others = records.list_job_ids(job, 2) or [job]
        if others:
            raise typer.BadParameter(f"Several jobs have ids that begin so, such as {job} and {others[0]}.")
        kept, changes = records.find_job_by_id(job), records.list_job_events(job)
        if not changes and kept is None:
            raise SettingsError(f"No job on record has the id {job!r}.")
        customer_id = changes[0].event.customer_id if kept is None else kept.customer_id
        deliveries = DeliveryRepository(engine).list_reports(customer_id, job)
    is_complete = bool(changes) and changes[0].event.kind is EventKind.SUBMITTED
    facts = {
        "jobId": job,
        "customerId": customer_id,
        "requestId": kept and kept.parameters.origin.get("request_id"),
        "traceId": kept and kept.parameters.origin.get("trace_id"),
        "status": kept and kept.status.value,
        "createdAt": kept and kept.created_at.isoformat(),
        "finishedAt": kept and kept.finished_at and kept.finished_at.isoformat(),
    }
    story = _tell_story(changes, deliveries)
    if as_json:
        steps = [{**step, "at": step["at"].isoformat()} for step in story]
        out.print_json(data={**facts, "isComplete": is_complete, "story": steps})
        return
    for name, value in facts.items():
        out.print(f"[dim]{name:<10}[/]  {escape(value or '-')}", highlight=False)
    if story:
        out.print(_create_story_table(story))
    if not is_complete:
        err.print(
            f"Changes older than {settings.tracker.event_retention_days:g} days are not kept "
            "(AVATARFORGE_TRACKER_EVENT_RETENTION_DAYS).",
            highlight=False,
        )


@app.command("save")
@client_command
def save_avatars(
    client: "Client",
    jobs: Annotated[list[str], typer.Argument(help="The jobs' ids, or their beginnings.")],
    customer: OwnerOption = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the avatars.")] = Path("out"),
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for jobs that have not ended, all together.")
    ] = 600,
    as_json: JsonOption = False,
) -> None:
    """Save the avatars of jobs, first of those that have ended. One that fails does not stop the others; what
    it made of several images before is saved too."""
    out_dir.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    found: dict[str, tuple[str, ProfilePhotoJobStatus]] = {}
    saved: list[dict[str, Any]] = []
    failures: list[Exception] = []
    try:
        for text in jobs:
            with _collect_failure(text, failures):
                job = _find_job(client, text, customer)
                found.setdefault(job.job_id, (text, job))
        for text, job in sorted(found.values(), key=lambda each: not each[1].is_terminal):
            with _collect_failure(text, failures):
                for path in _save_images(client, job, out_dir, deadline, timeout):
                    if not saved or saved[-1]["jobId"] != job.job_id:
                        saved.append({"jobId": job.job_id, "avatars": []})
                    saved[-1]["avatars"].append(path)
                    if not as_json:
                        out.print(f"avatar        {path}", highlight=False)
    finally:
        if as_json:
            out.print_json(data=saved)
    if failures:
        raise typer.Exit(get_exit_code(failures[0]))


@contextmanager
def _collect_failure(text: str, failures: list[Exception]) -> Iterator[None]:
    """Print an error of the job that is named so, and go on after the block."""
    from avatarforge.client import ClientError

    try:
        yield
    except (ClientError, OSError, typer.BadParameter) as error:
        print_error(f"{text}: {error}")
        failures.append(error)


def _save_images(
    client: "Client", job: "ProfilePhotoJobStatus", folder: Path, deadline: float, timeout: float
) -> Iterator[str]:
    """Save the job's images once it has ended, and yield their paths. The names of several end with their
    index. Raises `JobFailed` after those that a failed job made, and `StillRunning`."""
    from avatarforge.client import JobFailed, StillRunning

    failed = None
    try:
        job = client.wait(job, seconds=max(0.0, deadline - time.monotonic()))
    except StillRunning as late:
        # The time is that of all jobs together.
        raise StillRunning(late.job, timeout) from None
    except JobFailed as failure:
        failed, job = failure, failure.job
    for image in job.images:
        file, number = client.download(job, index=image.index), ""
        if job.parameters.variants > 1:
            number = str(image.index)
        name = "-".join(filter(None, (job.customer_id, image.style, job.job_id, number)))
        path = folder.resolve() / f"{name}{file.suffix}"
        path.write_bytes(file.content)
        yield str(path)
    if failed is not None:
        raise failed


@app.command("cancel")
@client_command
def cancel_job(
    client: "Client", job: JobArgument, customer: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """End a job that waits or runs."""
    _print_job(client.cancel(_find_job(client, job, customer, SHORT_ID_LENGTH)), as_json)


@app.command("keep")
@client_command
def keep_image(
    client: "Client",
    job: JobArgument,
    index: Annotated[int, typer.Argument(min=0, help="The image's number, as `jobs show` lists it.")],
    customer: OwnerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose which of a job's images is its avatar."""
    _print_job(client.keep(_find_job(client, job, customer), index), as_json)


@app.command("retry")
@client_command
def retry_job(
    client: "Client", job: JobArgument, customer: OwnerOption = None, as_json: JsonOption = False
) -> None:
    """Make a new job with the photo and the parameters of one that has ended."""
    _print_job(client.retry(_find_job(client, job, customer)), as_json)


@app.command("erase")
@client_command
def erase_job(
    client: "Client",
    job: JobArgument,
    customer: OwnerOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a job with its photo, its avatar and its webhooks, for good."""
    found = _find_job(client, job, customer, SHORT_ID_LENGTH if yes else MIN_ID_LENGTH)
    if not confirm(f"Erase job {found.job_id} ({found.status}) with its images?", yes):
        raise typer.Exit(ExitCode.FAILURE)
    client.erase(found)
    if as_json:
        out.print_json(data={"customerId": found.customer_id, "jobId": found.job_id, "erased": True})
    else:
        err.print(f"Job {found.job_id} is erased.", highlight=False)


def _create_story_table(story: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("Time (UTC)", "After", "Event", "Attempt", "Seq"):
        table.add_column(heading, no_wrap=True)
    table.add_column("", overflow="fold")
    for step in story:
        after = (step["at"] - story[0]["at"]).total_seconds()
        numbers = ("" if step[name] is None else str(step[name]) for name in ("attempt", "seq"))
        time = f"{step['at']:%Y-%m-%d %H:%M:%S.%f}"[:-3]
        table.add_row(time, f"{after:.3f} s", step["event"], *numbers, escape(step["detail"]))
    return table


def _tell_story(
    changes: Iterable["LoggedChange"], deliveries: Iterable["DeliveryReport"]
) -> list[dict[str, Any]]:
    """Put the calls among the changes, by time but after the change that they tell of. The changes stay in
    the order of the log: they were timed by the clocks of several machines."""
    story = list(_tell_changes(changes))
    for report in deliveries:
        place = next((n for n, step in enumerate(story, 1) if step["seq"] == report.delivery.seq), 0)
        for call in _tell_calls(report):
            while place < len(story) and story[place]["at"] <= call["at"]:
                place += 1
            story.insert(place, call)
            place += 1
    return story


def _tell_changes(changes: Iterable["LoggedChange"]) -> Iterator[dict[str, Any]]:
    from avatarforge.domain.status import EventKind

    for change in changes:
        event, job, detail = change.event, change.job, ""
        if job is not None and event.kind is EventKind.KEPT:
            detail = f"image {job.kept}"
        elif job is not None and event.kind is EventKind.IMAGE:
            detail = f"{len(job.images)} of {job.parameters.variants} images"
        elif job is not None and job.outcome is not None:
            detail = f"{job.outcome.backend}, {job.outcome.model}"
        elif job is not None and job.error is not None:
            detail = f"{job.error.message} ({job.error.code})"
        elif job is not None and job.worker_losses:
            detail = f"workers lost so far: {job.worker_losses}"
        yield {
            "at": event.at,
            "event": event.kind.value,
            "attempt": event.attempt,
            "seq": event.seq,
            "detail": detail,
        }


def _tell_calls(report: "DeliveryReport") -> Iterator[dict[str, Any]]:
    for number, call in enumerate(report.attempts, 1):
        answer = call.answer if call.status is None else f"status {call.status}"
        yield {
            "at": call.at,
            "event": "webhook called",
            "attempt": number,
            "seq": report.delivery.seq,
            "detail": f"{answer}, after {call.seconds:.3f} s",
        }


def _find_job(
    client: "Client", text: str, customer: str | None, min_length: int = MIN_ID_LENGTH
) -> "ProfilePhotoJobStatus":
    from avatarforge.cli.job_search import find_job

    return find_job(client, text, customer, min_length)


def job_to_json(job: "ProfilePhotoJobStatus") -> dict[str, Any]:
    message: dict[str, Any] = json.loads(job.json_bytes())
    return message


def format_state(job: "ProfilePhotoJobStatus") -> str:
    return f"[{_COLOURS[job.status]}]{job.status}[/]"


def print_jobs(jobs: list["ProfilePhotoJobStatus"], *, with_customer: bool) -> None:
    """Print as much of the jobs as the terminal has room for. Every command takes the ids as they stand."""
    if out.width >= _MIN_TABLE_COLUMNS:
        out.print(_create_table(jobs, with_customer=with_customer))
        return
    now = datetime.now(UTC)
    for job in jobs:
        customer = f"  {escape(job.customer_id)}" if with_customer else ""
        age = format_age((now - job.created_at).total_seconds())
        style = f"  {escape(job.parameters.style)}" if job.parameters.style else ""
        images = f"  {_count_images(job)}" if job.parameters.variants > 1 else ""
        out.print(f"{job.job_id}\n  {format_state(job)}{images}  {age}{customer}{style}", highlight=False)


def _create_table(jobs: list["ProfilePhotoJobStatus"], *, with_customer: bool) -> Table:
    from avatarforge.cli.job_search import shorten_ids

    now, ids = datetime.now(UTC), shorten_ids(job.job_id for job in jobs)
    columns = {
        "Job": [Text(ids[job.job_id]) for job in jobs],
        "State": [Text(job.status, _COLOURS[job.status]) for job in jobs],
        "Customer": [Text(job.customer_id) for job in jobs],
        "Accepted": [Text(format_age((now - job.created_at).total_seconds())) for job in jobs],
        "Took": [Text(_format_duration(job)) for job in jobs],
        "Images": [Text(f"{len(job.images)} of {job.parameters.variants}") for job in jobs],
        "Model": [Text(job.model or "") for job in jobs],
        "Style": [Text(job.parameters.style or "") for job in jobs],
        "Prompt": [Text(" ".join(job.parameters.prompt.split())) for job in jobs],
    }
    has_several = any(job.parameters.variants > 1 for job in jobs)
    shown = {"Customer": with_customer, "Images": has_several}
    widths = _fit_columns(columns, without=[heading for heading, is_shown in shown.items() if not is_shown])
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading, width in widths.items():
        is_folded = heading == "Customer"
        table.add_column(
            heading,
            justify="right" if heading == "Took" else "left",
            no_wrap=not is_folded,
            overflow="fold" if is_folded else "ellipsis",
            width=width,
        )
    for cells in zip(*(columns[heading] for heading in widths), strict=True):
        table.add_row(*cells)
    return table


def _fit_columns(columns: Mapping[str, list[Text]], without: Collection[str]) -> dict[str, int]:
    """Return the columns that the terminal has room for, with their widths. Only prompts are cut, and
    customers folded."""
    widths = {
        heading: max(len(heading), *(cell.cell_len for cell in cells))
        for heading, cells in columns.items()
        if heading not in without
    }
    prompt = widths["Prompt"]
    widths["Prompt"] = min(prompt, _MIN_PROMPT_COLUMNS)

    def count_free() -> int:
        return out.width - sum(widths.values()) - _COLUMN_GAP * (len(widths) - 1)

    for heading in _OPTIONAL:
        if count_free() < 0:
            widths.pop(heading, None)
    if count_free() < 0 and "Customer" in widths:
        widths["Customer"] = max(_MIN_CUSTOMER_COLUMNS, widths["Customer"] + count_free())
    if "Prompt" in widths:
        widths["Prompt"] = min(prompt, widths["Prompt"] + count_free())
    return widths


def format_age(seconds: float) -> str:
    """Return how long ago, in the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def _format_duration(job: "ProfilePhotoJobStatus") -> str:
    if job.finished_at is None:
        return ""
    return f"{(job.finished_at - job.created_at).total_seconds():.1f} s"


def _describe_job(
    job: "ProfilePhotoJobStatus", deliveries: tuple["DeliveryMessage", ...]
) -> Iterable[tuple[str, str]]:
    yield "job", job.job_id
    yield "customer", escape(job.customer_id)
    yield "state", format_state(job) + _format_position(job)
    if job.error is not None:
        yield "error", f"{escape(job.error.message)} [dim]({job.error.code})[/]"
    yield "accepted", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if job.finished_at is not None:
        yield "ended", f"{job.finished_at:%Y-%m-%d %H:%M:%S} UTC, after {_format_duration(job)}"
    yield "attempts", str(job.attempt)
    if job.parameters.style is not None:
        yield "style", escape(job.parameters.style)
    if job.parameters.prompt:
        yield "prompt", escape(job.parameters.prompt)
    yield "seed", str(job.seed)
    for image in job.images if job.parameters.variants > 1 else ():
        style, is_kept = f", {image.style}" if image.style else "", image.index == job.kept
        yield f"image {image.index}", f"seed {image.seed}{escape(style)}" + ", [bold]kept[/]" * is_kept
    if job.model is not None:
        yield "made with", escape(f"{job.model}, {job.backend}")
    times = [f"{name} {seconds:.2f}" for name, seconds in job.timings if seconds is not None]
    if times:
        yield "seconds", ", ".join(times)
    if job.retry_of is not None:
        yield "again for", job.retry_of
    for delivery in deliveries:
        calls = len(delivery.attempts)
        yield "webhook", escape(f"{delivery.state} after {calls} call{'s' * (calls != 1)}, {delivery.url}")


def _format_position(job: "ProfilePhotoJobStatus") -> str:
    parts = []
    if job.progress is not None:
        parts.append(f"step {job.progress.step} of {job.progress.total_steps}")
    elif job.queue_position is not None:
        parts.append(f"number {job.queue_position} in the queue")
    if job.parameters.variants > 1 and job.status != "DONE":
        parts.append(_count_images(job))
    if job.kept is not None:
        parts.append(f"image {job.kept} kept")
    return "".join(f", {part}" for part in parts)


def _count_images(job: "ProfilePhotoJobStatus") -> str:
    return f"{len(job.images)} of {job.parameters.variants} images"


def _format_job(job: "ProfilePhotoJobStatus") -> str:
    reason = f"  {escape(job.error.message)}" if job.error else ""
    return f"{job.job_id}  {format_state(job)}{_format_position(job)}{reason}"


def _print_event(event: "JobEvent") -> None:
    from avatarforge.client import JobChanged, JobErased, Snapshot

    now = f"[dim]{datetime.now():%H:%M:%S}[/]"
    match event:
        case Snapshot(jobs=jobs, reset=reset):
            if reset:
                err.print("[yellow]Some changes are no longer in the log.[/]")
            for job in jobs:
                out.print(f"{now}  {_format_job(job)}", highlight=False)
        case JobChanged(job=job):
            out.print(f"{now}  {_format_job(job)}", highlight=False)
        case JobErased(job_id=job_id):
            out.print(f"{now}  {job_id}  erased", highlight=False)


def _event_to_json(event: "JobEvent") -> dict[str, Any]:
    from avatarforge.client import JobChanged, JobErased, JobProgressed, Snapshot

    match event:
        case Snapshot(seq=seq, jobs=jobs, reset=reset):
            return {
                "event": "reset" if reset else "snapshot",
                "seq": seq,
                "photos": [job_to_json(job) for job in jobs],
            }
        case JobChanged(seq=seq, job=job):
            return {"event": "status", "seq": seq, "photo": job_to_json(job)}
        case JobProgressed(job=job):
            return {"event": "progress", "photo": job_to_json(job)}
        case JobErased(seq=seq, customer_id=customer_id, job_id=job_id):
            return {"event": "erased", "seq": seq, "customerId": customer_id, "jobId": job_id}


def _get_job(event: "JobEvent") -> "ProfilePhotoJobStatus | None":
    from avatarforge.client import JobChanged, Snapshot

    match event:
        case JobChanged(job=job):
            return job
        case Snapshot(jobs=jobs) if jobs:
            return jobs[0]
    return None


def _print_job(job: "ProfilePhotoJobStatus", as_json: bool) -> None:
    if as_json:
        out.print_json(data=job_to_json(job))
    else:
        out.print(_format_job(job), highlight=False)
