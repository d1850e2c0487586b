"""Options that several commands have, said once."""

from typing import Annotated

import typer

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
    ),
]
CustomerOption = Annotated[str, typer.Option("--customer", "-c", help="Customer id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
JobArgument = Annotated[str, typer.Argument(help="The job's id.")]
