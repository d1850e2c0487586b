"""Options that several commands have, said once."""

from typing import Annotated

import typer


def _checked_key(text: str | None) -> str | None:
    from avatarforge.client.connection import checked_key

    try:
        return None if text is None else checked_key(text)
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
        callback=_checked_key,
    ),
]
CustomerOption = Annotated[str, typer.Option("--customer", "-c", help="Customer id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JobArgument = Annotated[str, typer.Argument(help="The job's id.")]
