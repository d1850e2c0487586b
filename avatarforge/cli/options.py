"""The options that several commands share."""

import inspect
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from avatarforge.cli.terminal import report_errors
from avatarforge.settings import variables

DEFAULT_CUSTOMER = "me"
ID_LENGTH = 36
SHORT_ID_LENGTH = 18
"""Of the ids in tables. They begin with the millisecond, in 13 characters; the next ones are random."""
MIN_ID_LENGTH = 8
"""Of a beginning that names a job: an empty variable of a script must not name the only one."""


def validate_id_beginning(text: str, min_length: int = MIN_ID_LENGTH) -> str:
    """Return the id of a job, or the beginning of one. Raises `typer.BadParameter`."""
    if not re.fullmatch(rf"[0-9a-f-]{{{min_length},{ID_LENGTH}}}", text):
        raise typer.BadParameter(
            f"{text!r} names no job: give its id, or the first {min_length} characters of it or more."
        )
    return text


def _validate_key(text: str | None) -> str | None:
    from avatarforge.client.connection import validate_api_key

    try:
        return None if text is None else validate_api_key(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="AVATARFORGE_URL",
        help="The server, such as https://forge.example; by default the one on this machine.",
    ),
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="AVATARFORGE_API_KEY",
        help="Where the server asks for one. Others on this machine may see options, but not variables.",
        show_default=False,
        callback=_validate_key,
    ),
]
CustomerOption = Annotated[str, typer.Option("--customer", "-c", help="Customer id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JobArgument = Annotated[str, typer.Argument(help="The job's id, or the first 8 characters or more.")]
OwnerOption = Annotated[
    str | None,
    typer.Option("--customer", "-c", help="The job's customer; by default it is looked for at all of them."),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder for all data. Variable: AVATARFORGE_DATA_DIR.")
]


def to_variables(
    data_dir: Path | None, host: str | None = None, port: int | None = None, grpc_port: int | None = None
) -> dict[str, str]:
    """Return the options as environment variables, so that they hold in every process that we start."""
    given = {
        ("http", "host"): host,
        ("http", "port"): port,
        ("grpc", "port"): grpc_port,
        ("data_dir",): data_dir,
    }
    names = {path: name for name, path in variables().items()}
    return {names[path]: str(value) for path, value in given.items() if value is not None}


def client_command(command: Callable[..., None]) -> Callable[..., None]:
    """Add `--url` and `--api-key` to the command, and call it with a client of that server as its first
    argument. Errors are reported as by `report_errors`.
    """

    @wraps(command)
    def run(*, url: str | None, api_key: str | None, **options: Any) -> None:
        from avatarforge.cli.connect import connect

        with connect(url, api_key) as client:
            command(client, **options)

    _, *parameters = inspect.signature(command).parameters.values()
    for name, annotation in (("url", UrlOption), ("api_key", ApiKeyOption)):
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=None, annotation=annotation))
    reported: Any = report_errors(run)
    reported.__signature__ = inspect.Signature(parameters)
    reported.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return reported  # type: ignore[no-any-return]
