"""`avatarforge jobs`: what became of photos, on any server."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from avatarforge.cli.options import (
    ApiKeyOption,
    CustomerOption,
    JobArgument,
    JsonOption,
    UrlOption,
    YesOption,
)
from avatarforge.cli.terminal import Exit, confirmed, err, errors_in_one_sentence, out

if TYPE_CHECKING:
    from avatarforge.client import DeliveryMessage, News, ProfilePhotoJobStatus

app = typer.Typer(help="What became of photos.", no_args_is_help=True)

_COLOURS = {
    "PENDING": "cyan",
    "PROCESSING": "blue",
    "DONE": "green",
    "FAILED": "red",
    "CANCELLED": "yellow",
}
_NARROW, _WIDE = 64, 80
"""Columns of a terminal below which a job takes two lines, and from which a list shows everything."""


@app.command("list")
@errors_in_one_sentence
def list_jobs(
    customer: CustomerOption = "me",
    everyone: Annotated[bool, typer.Option("--all", help="The latest job of every customer.")] = False,
    state: Annotated[
        str | None, typer.Option(help="Only these: pending, processing, done, failed or cancelled.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most jobs.")] = 20,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    from itertools import islice

    from avatarforge.cli.connecting import connected

    wanted = _state(state)
    with connected(url, api_key) as client:
        found: Iterable[ProfilePhotoJobStatus] = client.jobs(customer)
        if everyone:
            latest = (each.latest_photo for each in client.customers())
            found = sorted(
                (job for job in latest if job is not None), key=lambda job: job.created_at, reverse=True
            )
        jobs = list(islice((job for job in found if wanted in (None, job.status)), limit))
    if as_json:
        out.print_json(json.dumps([told(job) for job in jobs]))
        return
    if not jobs:
        err.print("No job is like that.")
        return
    show_list(jobs, with_customer=everyone)


@app.command("show")
@errors_in_one_sentence
def show_job(
    job: JobArgument,
    customer: CustomerOption = "me",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job: its state, times, error and webhooks."""
    from avatarforge.cli.connecting import connected
    from avatarforge.client import JobName

    with connected(url, api_key) as client:
        found = client.status(JobName(customer, job))
        deliveries = client.deliveries(found)
    if as_json:
        webhooks = [json.loads(delivery.json_bytes()) for delivery in deliveries]
        out.print_json(json.dumps({**told(found), "deliveries": webhooks}))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _facts(found, deliveries):
        table.add_row(label, value)
    out.print(table)


@app.command("watch")
@errors_in_one_sentence
def watch_jobs(
    job: Annotated[str | None, typer.Argument(help="Only this one, and until it ends.")] = None,
    customer: CustomerOption = "me",
    after: Annotated[
        int | None, typer.Option(min=0, help="Begin with what came after this event (`seq`).")
    ] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a customer's jobs, a line for each change, until Ctrl-C. With --json one object a line."""
    from avatarforge.cli.connecting import connected
    from avatarforge.client import JobFailed, JobName, Progressed

    with connected(url, api_key) as client:
        whom = customer if job is None else JobName(customer, job)
        last = None
        with err.status("Waiting for changes …") as line:
            for news in client.watch(whom, after=after):
                if as_json:
                    out.print(json.dumps(_event(news)), highlight=False, markup=False)
                elif isinstance(news, Progressed):
                    line.update(_line(news.job))
                else:
                    _tell(news)
                last = _job_of(news) or last
        if job is not None and last is not None and last.status != "DONE":
            raise JobFailed(last)


@app.command("cancel")
@errors_in_one_sentence
def cancel_job(
    job: JobArgument,
    customer: CustomerOption = "me",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a job that waits or runs."""
    from avatarforge.cli.connecting import connected
    from avatarforge.client import JobName

    with connected(url, api_key) as client:
        _answer(client.cancel(JobName(customer, job)), as_json)


@app.command("retry")
@errors_in_one_sentence
def retry_job(
    job: JobArgument,
    customer: CustomerOption = "me",
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new job with the photo and the wishes of one that has ended."""
    from avatarforge.cli.connecting import connected
    from avatarforge.client import JobName

    with connected(url, api_key) as client:
        _answer(client.retry(JobName(customer, job)), as_json)


@app.command("erase")
@errors_in_one_sentence
def erase_job(
    job: JobArgument,
    customer: CustomerOption = "me",
    yes: YesOption = False,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove a job with its photo, its avatar and its webhooks, for good."""
    from avatarforge.cli.connecting import connected
    from avatarforge.client import JobName

    with connected(url, api_key) as client:
        found = client.status(JobName(customer, job))
        if not confirmed(f"Erase job {job} ({found.status}) with its pictures?", yes):
            raise typer.Exit(Exit.FAILURE)
        client.erase(found)
    if as_json:
        out.print_json(json.dumps({"customerId": customer, "jobId": job, "erased": True}))
    else:
        err.print(f"Job {job} is erased.", highlight=False)


def told(job: "ProfilePhotoJobStatus") -> dict[str, Any]:
    """The job as every channel tells it."""
    message: dict[str, Any] = json.loads(job.json_bytes())
    return message


def state_of(job: "ProfilePhotoJobStatus") -> str:
    """The job's state in its colour."""
    return f"[{_COLOURS[job.status]}]{job.status}[/]"


def _state(text: str | None) -> str | None:
    if text is not None and text.upper() not in _COLOURS:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_COLOURS).lower()}.", param_hint="--state")
    return None if text is None else text.upper()


def show_list(jobs: list["ProfilePhotoJobStatus"], *, with_customer: bool) -> None:
    """The jobs, as the terminal has room for them. Ids are never cut: people copy them."""
    if out.width >= _NARROW:
        out.print(_table(jobs, with_customer=with_customer))
        return
    now = datetime.now(UTC)
    for job in jobs:
        whose = f"  {escape(job.customer_id)}" if with_customer else ""
        age = ago((now - job.created_at).total_seconds())
        out.print(f"{job.job_id}\n  {state_of(job)}  {age}{whose}", highlight=False)


def _table(jobs: list["ProfilePhotoJobStatus"], *, with_customer: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Job", no_wrap=True)
    table.add_column("State", no_wrap=True)
    if with_customer:
        table.add_column("Customer", overflow="fold")
    table.add_column("Accepted", no_wrap=True)
    is_wide = out.width >= _WIDE
    if is_wide:
        table.add_column("Took", justify="right", no_wrap=True)
        table.add_column("Model")
    now = datetime.now(UTC)
    for job in jobs:
        cells = [job.job_id, state_of(job)]
        cells += [escape(job.customer_id)] if with_customer else []
        cells += [ago((now - job.created_at).total_seconds())]
        cells += [_took(job), escape(job.model or "")] if is_wide else []
        table.add_row(*cells)
    return table


def ago(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{max(0, int(seconds))} s ago"


def _took(job: "ProfilePhotoJobStatus") -> str:
    if job.finished_at is None:
        return ""
    return f"{(job.finished_at - job.created_at).total_seconds():.1f} s"


def _facts(
    job: "ProfilePhotoJobStatus", deliveries: tuple["DeliveryMessage", ...]
) -> Iterable[tuple[str, str]]:
    yield "job", job.job_id
    yield "customer", escape(job.customer_id)
    yield "state", state_of(job) + _where(job)
    if job.error is not None:
        yield "error", f"{escape(job.error.message)} [dim]({job.error.code})[/]"
    yield "accepted", f"{job.created_at:%Y-%m-%d %H:%M:%S} UTC"
    if job.finished_at is not None:
        yield "ended", f"{job.finished_at:%Y-%m-%d %H:%M:%S} UTC, after {_took(job)}"
    yield "attempts", str(job.attempt)
    if job.parameters.style is not None:
        yield "style", escape(job.parameters.style)
    if job.parameters.prompt:
        yield "prompt", escape(job.parameters.prompt)
    yield "seed", str(job.seed)
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


def _where(job: "ProfilePhotoJobStatus") -> str:
    if job.progress is not None:
        return f", step {job.progress.step} of {job.progress.total_steps}"
    return "" if job.queue_position is None else f", number {job.queue_position} in the line"


def _line(job: "ProfilePhotoJobStatus") -> str:
    reason = f"  {escape(job.error.message)}" if job.error else ""
    return f"{job.job_id}  {state_of(job)}{_where(job)}{reason}"


def _tell(news: "News") -> None:
    from avatarforge.client import Changed, Erased, Snapshot

    now = f"[dim]{datetime.now():%H:%M:%S}[/]"
    match news:
        case Snapshot(jobs=jobs, reset=reset):
            if reset:
                err.print("[yellow]Some changes are no longer in the log.[/]")
            for job in jobs:
                out.print(f"{now}  {_line(job)}", highlight=False)
        case Changed(job=job):
            out.print(f"{now}  {_line(job)}", highlight=False)
        case Erased(job_id=job_id):
            out.print(f"{now}  {job_id}  erased", highlight=False)


def _event(news: "News") -> dict[str, Any]:
    from avatarforge.client import Changed, Erased, Progressed, Snapshot

    match news:
        case Snapshot(seq=seq, jobs=jobs, reset=reset):
            return {
                "event": "reset" if reset else "snapshot",
                "seq": seq,
                "photos": [told(job) for job in jobs],
            }
        case Changed(seq=seq, job=job):
            return {"event": "status", "seq": seq, "photo": told(job)}
        case Progressed(job=job):
            return {"event": "progress", "photo": told(job)}
        case Erased(seq=seq, customer_id=customer_id, job_id=job_id):
            return {"event": "erased", "seq": seq, "customerId": customer_id, "jobId": job_id}


def _job_of(news: "News") -> "ProfilePhotoJobStatus | None":
    from avatarforge.client import Changed, Snapshot

    match news:
        case Changed(job=job):
            return job
        case Snapshot(jobs=jobs) if jobs:
            return jobs[0]
    return None


def _answer(job: "ProfilePhotoJobStatus", as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(told(job)))
    else:
        out.print(_line(job), highlight=False)
