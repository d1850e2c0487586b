"""The commands' names, options and help."""

import json
from pathlib import Path
from typing import Annotated

import typer

import avatarforge
from avatarforge.cli import customers, jobs
from avatarforge.cli.options import ApiKeyOption, CustomerOption, JsonOption, UrlOption
from avatarforge.cli.terminal import errors_in_one_sentence, out
from avatarforge.settings import variables

EXIT_CODES = (
    "Exit codes: 0 done; 1 it did not work; 2 wrong usage; 3 the server refused; 4 no server answers, or it "
    "is too busy; 5 a job ended without an avatar; 6 a job goes on; 130 interrupted."
)

app = typer.Typer(
    name="avatarforge",
    help="Turn photos into AI-made profile pictures, on your own machine.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db = typer.Typer(help="The database's schema.", no_args_is_help=True)
models = typer.Typer(help="The checkpoints that can be named.", no_args_is_help=True)
app.add_typer(jobs.app, name="jobs")
app.add_typer(customers.app, name="customers")
app.add_typer(db, name="db")
app.add_typer(models, name="models")
keys = typer.Typer(help="API keys: who may use the service.", no_args_is_help=True)
app.add_typer(keys, name="keys")

HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on. Variable: AVATARFORGE_HTTP_HOST.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", help="Port for REST. Variable: AVATARFORGE_HTTP_PORT.")
]
GrpcPortOption = Annotated[
    int | None, typer.Option("--grpc-port", help="Port for gRPC. Variable: AVATARFORGE_GRPC_PORT.")
]
DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Folder for all data. Variable: AVATARFORGE_DATA_DIR."),
]


@app.command()
@errors_in_one_sentence
def up(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="Serve config file, such as serve_config.yaml; applied when it changes."
        ),
    ] = None,
    host: HostOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    data_dir: DataDirOption = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Ask nobody for a key. Variable: AVATARFORGE_ACCESS_REQUIRED=never."),
    ] = False,
    timings: Annotated[bool, typer.Option("--timings", help="Show where the start's time went.")] = False,
) -> None:
    """Serve on this machine until Ctrl-C."""
    from avatarforge.cli import serving

    options = _options(host, port, grpc_port, data_dir)
    if insecure:
        options["AVATARFORGE_ACCESS_REQUIRED"] = "never"
    serving.up(config=config, options=options, timings=timings)


@app.command()
@errors_in_one_sentence
def forge(
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos, by default the sample one.")] = None,
    style: Annotated[
        str | None, typer.Option(help="Such as pixel-art; see `avatarforge models list`.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="What to see in the avatar.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to see.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="0 to 1: how far the avatar may leave the photo.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely the prompt is followed.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same avatar.")] = None,
    cut_face: Annotated[
        bool | None,
        typer.Option("--cut-face/--whole", help="A square around the face, or a square photo as it is."),
    ] = None,
    job_timeout: Annotated[
        float | None, typer.Option(help="Seconds after which the server gives a job up (timeoutSeconds).")
    ] = None,
    start_timeout: Annotated[
        float | None, typer.Option(help="The same for a job that has not been started (startTimeoutSeconds).")
    ] = None,
    customer: CustomerOption = "me",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("out"),
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start an AvatarForge for this call if none is running.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Like --start, and explain what happens.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait here for each avatar.")] = 600,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload photos, follow them, and save avatars and before/after pictures."""
    from avatarforge.cli import forging

    forging.forge(
        photos=photos or [],
        wishes={
            "style": style,
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "strength": strength,
            "steps": steps,
            "guidance": guidance,
            "seed": seed,
            "cut_face": cut_face,
            "timeout_seconds": job_timeout,
            "start_timeout_seconds": start_timeout,
        },
        customer=customer,
        folder=out_dir,
        url=url,
        api_key=api_key,
        options=_options(host, port, None, data_dir),
        start=start or demo,
        demo=demo,
        timeout=timeout,
        as_json=as_json,
    )


@app.command()
@errors_in_one_sentence
def dev(
    host: HostOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    data_dir: DataDirOption = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use SQLite and a folder, whatever is installed.")
    ] = False,
) -> None:
    """Serve, and start again when a file changes; on a private MariaDB and S3 where they are installed."""
    from avatarforge.cli.dev import dev

    dev(_options(host, port, grpc_port, data_dir), embedded=embedded)


@app.command()
@errors_in_one_sentence
def bench(
    photos: Annotated[int, typer.Option(min=1, help="Photos to upload.")] = 32,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Of them at most so many at a time.")] = 8,
    photo: Annotated[Path | None, typer.Option(help="The photo, by default the sample one.")] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a running server by a small load: uploads, avatars a second, and how long each waits."""
    from avatarforge.cli.bench import bench

    bench(photo=photo, photos=photos, at_once=at_once, url=url, api_key=api_key, as_json=as_json)


@db.command("upgrade")
@errors_in_one_sentence
def db_upgrade(data_dir: DataDirOption = None) -> None:
    """Bring the database to this release's schema."""
    from avatarforge.cli import tables

    tables.upgrade_database(_options(None, None, None, data_dir))


@db.command("current")
@errors_in_one_sentence
def db_current(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show the database's schema revision. Exits with 1 when it is not this release's."""
    from avatarforge.cli import tables

    tables.show_database(_options(None, None, None, data_dir), as_json)


@keys.command("create")
@errors_in_one_sentence
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is, for your own memory.")],
    customer: Annotated[
        list[str] | None,
        typer.Option(help="A customer that it reaches, or the beginning of ids: 'shop-*'. May be repeated."),
    ] = None,
    all_customers: Annotated[
        bool, typer.Option("--all-customers", help="It reaches every customer.")
    ] = False,
    admin: Annotated[
        bool,
        typer.Option("--admin", help="It may read /metrics; with --all-customers list the customers too."),
    ] = False,
    expires_days: Annotated[
        float | None, typer.Option(min=0, max=36_500, help="Days until it expires; by default never.")
    ] = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key and show it once."""
    from avatarforge.cli import keys

    keys.create_key(
        name,
        [*(customer or []), *(["*"] if all_customers else [])],
        administers=admin,
        expires_days=expires_days,
        options=_options(None, None, None, data_dir),
        as_json=as_json,
    )


@keys.command("list")
@errors_in_one_sentence
def keys_list(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """List the API keys: whose they are and what they reach, never the keys themselves."""
    from avatarforge.cli import keys

    keys.list_keys(_options(None, None, None, data_dir), as_json)


@keys.command("revoke")
@errors_in_one_sentence
def keys_revoke(
    key_id: Annotated[str, typer.Argument(help="As `avatarforge keys list` shows it.")],
    data_dir: DataDirOption = None,
) -> None:
    """Revoke an API key. Running servers take notice within seconds."""
    from avatarforge.cli import keys

    keys.revoke_key(key_id, _options(None, None, None, data_dir))


@models.command("list")
@errors_in_one_sentence
def models_list(as_json: JsonOption = False) -> None:
    """List the checkpoints: licence, size, styles, and where their weights are."""
    from avatarforge.cli import models

    models.show_models(as_json)


@models.command("check")
@errors_in_one_sentence
def models_check(
    name: Annotated[str, typer.Argument(help="As `avatarforge models list` shows it.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Keep the picture that is made, as PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load a checkpoint and make one picture. Exits with 1, and says why, when it cannot serve."""
    from avatarforge.cli import models

    models.check_model(name, out_file, as_json)


@models.command("compare")
@errors_in_one_sentence
def models_compare(
    first: Annotated[str, typer.Argument(help="A checkpoint.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    photo: Annotated[Path | None, typer.Option(help="The photo, by default the sample one.")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="The contact sheet, as PNG.")] = Path("sheet.png"),
    strengths: Annotated[
        str, typer.Option(help="The columns: strengths, separated by commas.")
    ] = "0.4,0.6,0.8",
    seed: Annotated[int, typer.Option(min=0, help="The same for every picture.")] = 1,
) -> None:
    """Write a contact sheet: what two checkpoints make of a photo, over styles and strengths."""
    from avatarforge.cli import models

    models.compare_models(first, second, photo, out_file, strengths, seed)


@app.command()
@errors_in_one_sentence
def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", help="Serve config file, such as serve_config.yaml.")
    ] = None,
    gpu: Annotated[
        bool | None, typer.Option("--gpu/--no-gpu", help="Whether a GPU must be here; the settings say.")
    ] = None,
    host: HostOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check database, keys, storage, Redis, GPU, model and ports. Exits with 1 when one fails."""
    from avatarforge.cli import doctor as examination

    examination.doctor(config, gpu, _options(host, port, grpc_port, data_dir), as_json)


@app.command()
@errors_in_one_sentence
def settings(
    as_json: JsonOption = False,
    as_markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Write the page docs/settings.md: defaults, no values in force."),
    ] = False,
) -> None:
    """Show every setting: variable, default, value in force and meaning."""
    from avatarforge.cli import tables

    if as_markdown:
        print(tables.settings_page(), end="")
    else:
        tables.show_settings(as_json)


@app.command()
@errors_in_one_sentence
def openapi(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Write the page docs/rest.md instead of JSON.")
    ] = False,
) -> None:
    """Write the OpenAPI description of the REST interface, as `/openapi.json` serves it."""
    from avatarforge.cli import interface

    print(interface.page() if as_markdown else interface.description(), end="")


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Show AvatarForge's version."""
    out.print_json(json.dumps({"version": avatarforge.__version__})) if as_json else print(
        avatarforge.__version__
    )


def _options(
    host: str | None, port: int | None, grpc_port: int | None, data_dir: Path | None
) -> dict[str, str]:
    """Options as the variables that they stand for: then they hold in every process that we start."""
    given = {
        ("http", "host"): host,
        ("http", "port"): port,
        ("grpc", "port"): grpc_port,
        ("data_dir",): data_dir,
    }
    names = {path: name for name, path in variables().items()}
    return {names[path]: str(value) for path, value in given.items() if value is not None}
