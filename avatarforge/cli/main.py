"""The names, options and help of the commands."""

import json
from pathlib import Path
from typing import Annotated

import typer

import avatarforge
from avatarforge.cli import customers, database, jobs, keys, webhooks
from avatarforge.cli.options import (
    DEFAULT_CUSTOMER,
    ApiKeyOption,
    CustomerOption,
    DataDirOption,
    JsonOption,
    UrlOption,
    to_variables,
)
from avatarforge.cli.terminal import out, report_errors
from avatarforge.domain.jobs import ImageFormat

EXIT_CODES = (
    "Exit codes: 0 done; 1 failure; 2 wrong usage; 3 the server answered with an error; 4 no server answers, "
    "or it is too busy; 5 a job ended without an avatar; 6 a job goes on; 130 interrupted."
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
models = typer.Typer(help="The checkpoints on this machine.", no_args_is_help=True)
app.add_typer(jobs.app, name="jobs")
app.add_typer(customers.app, name="customers")
app.add_typer(database.app, name="db")
app.add_typer(keys.app, name="keys")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(models, name="models")

HostOption = Annotated[
    str | None, typer.Option("--host", help="Address to listen on. Variable: AVATARFORGE_HTTP_HOST.")
]
PortOption = Annotated[
    int | None, typer.Option("--port", help="Port for REST. Variable: AVATARFORGE_HTTP_PORT.")
]
GrpcPortOption = Annotated[
    int | None, typer.Option("--grpc-port", help="Port for gRPC. Variable: AVATARFORGE_GRPC_PORT.")
]


@app.command()
@report_errors
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
        typer.Option("--insecure", help="Serve without keys. Variable: AVATARFORGE_ACCESS_REQUIRED=never."),
    ] = False,
    timings: Annotated[
        bool, typer.Option("--timings", help="Show how long the start's phases took.")
    ] = False,
) -> None:
    """Serve on this machine until Ctrl-C."""
    from avatarforge.cli.up import up

    options = to_variables(data_dir, host, port, grpc_port)
    if insecure:
        options["AVATARFORGE_ACCESS_REQUIRED"] = "never"
    up(config=config, options=options, timings=timings)


@app.command()
@report_errors
def forge(
    photos: Annotated[
        list[Path] | None,
        typer.Argument(help="Photos, folders of photos, or - for standard input; by default the sample."),
    ] = None,
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
    image_guidance: Annotated[
        float | None, typer.Option(help="1 to 5: how closely the photo is followed, in models that edit.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Such as 'Euler a', where the model leaves a choice.")
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="The avatar's width in pixels, with a height; by default the model's size."),
    ] = None,
    height: Annotated[int | None, typer.Option(help="Its height.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed makes the same avatar.")] = None,
    image_format: Annotated[
        ImageFormat | None, typer.Option("--format", help="The avatar's file format.")
    ] = None,
    crop_to_face: Annotated[
        bool | None,
        typer.Option(
            "--crop-face/--no-crop",
            help="Crop around the face, or take a photo of the avatar's proportions as is.",
        ),
    ] = None,
    job_timeout: Annotated[
        float | None, typer.Option(help="Seconds until the server fails the job (timeoutSeconds).")
    ] = None,
    start_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds until it fails a job that has not started (startTimeoutSeconds)."),
    ] = None,
    variants: Annotated[int | None, typer.Option(help="1 to 8: how many avatars of each photo.")] = None,
    vary: Annotated[
        str | None, typer.Option(help="How they differ: by seed, or by style, each the next one.")
    ] = None,
    customer: CustomerOption = DEFAULT_CUSTOMER,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the images.")] = Path("out"),
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start an AvatarForge for this call if none is running.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Like --start, with progress messages.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to wait here for each avatar.")] = 600,
    host: HostOption = None,
    port: PortOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload photos, follow them, and save avatars and before/after images."""
    from avatarforge.cli.forge import forge

    forge(
        photos=photos or [],
        parameters={
            "style": style,
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "strength": strength,
            "steps": steps,
            "guidance": guidance,
            "image_guidance": image_guidance,
            "sampler": sampler,
            "width": width,
            "height": height,
            "seed": seed,
            "format": image_format and image_format.value,
            "crop_to_face": crop_to_face,
            "timeout_seconds": job_timeout,
            "start_timeout_seconds": start_timeout,
            "variants": variants,
            "vary": vary,
        },
        customer=customer,
        folder=out_dir,
        url=url,
        api_key=api_key,
        options=to_variables(data_dir, host, port),
        start=start or demo,
        demo=demo,
        timeout=timeout,
        as_json=as_json,
    )


@app.command()
@report_errors
def dev(
    host: HostOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    data_dir: DataDirOption = None,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use SQLite and a folder in any case.")
    ] = False,
) -> None:
    """Serve, and restart when a file changes; on a private MariaDB and S3 if they are installed."""
    from avatarforge.cli.dev import dev

    dev(to_variables(data_dir, host, port, grpc_port), embedded=embedded)


@app.command()
@report_errors
def bench(
    photos: Annotated[int, typer.Option(min=1, help="Photos to upload.")] = 32,
    at_once: Annotated[int, typer.Option(min=1, max=256, help="Most photos at a time.")] = 8,
    photo: Annotated[Path | None, typer.Option(help="The photo, by default the sample.")] = None,
    url: UrlOption = None,
    api_key: ApiKeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a running server with a small load: the times of uploads, and avatars a second."""
    from avatarforge.cli.bench import bench

    bench(photo=photo, photos=photos, at_once=at_once, url=url, api_key=api_key, as_json=as_json)


@models.command("list")
@report_errors
def models_list(as_json: JsonOption = False) -> None:
    """List the checkpoints: licence, size, styles, and where their weights are."""
    from avatarforge.cli import models

    models.show_models(as_json)


@models.command("check")
@report_errors
def models_check(
    name: Annotated[str, typer.Argument(help="A name of `avatarforge models list`.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Keep the image that is made, as PNG.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Load a checkpoint and make one image. Exits with 1, and says why, if it cannot serve."""
    from avatarforge.cli import models

    models.check_model(name, out_file, as_json)


@models.command("compare")
@report_errors
def models_compare(
    first: Annotated[str, typer.Argument(help="A checkpoint.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    photo: Annotated[Path | None, typer.Option(help="The photo, by default the sample.")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="The contact sheet, as PNG.")] = Path("sheet.png"),
    strengths: Annotated[
        str,
        typer.Option(
            help="The columns: strengths, separated by commas; for an editing model their equivalents."
        ),
    ] = "0.4,0.6,0.8",
    seed: Annotated[int, typer.Option(min=0, help="The same for every image.")] = 1,
) -> None:
    """Write a contact sheet: the avatars that two checkpoints make of a photo, by styles and strengths."""
    from avatarforge.cli import models

    models.compare_models(first, second, photo, out_file, strengths, seed)


@app.command()
@report_errors
def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", help="Serve config file, such as serve_config.yaml.")
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--no-gpu", help="Require a GPU or not; by default as the settings say."),
    ] = None,
    host: HostOption = None,
    port: PortOption = None,
    grpc_port: GrpcPortOption = None,
    data_dir: DataDirOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check database, keys, storage, Redis, GPU, model and ports. Exits with 1 when one fails."""
    from avatarforge.cli.doctor import doctor

    doctor(config, gpu, to_variables(data_dir, host, port, grpc_port), as_json)


@app.command()
@report_errors
def settings(as_json: JsonOption = False) -> None:
    """Show every setting: variable, default, value in force and meaning."""
    from avatarforge.cli.settings import show_settings

    show_settings(as_json)


@app.command()
@report_errors
def openapi() -> None:
    """Write the OpenAPI description of the REST interface, as `/openapi.json` serves it."""
    from avatarforge.ingress.app import create_documented_api

    print(json.dumps(create_documented_api().openapi(), indent=2))


@app.command()
def version(as_json: JsonOption = False) -> None:
    """Show AvatarForge's version."""
    out.print_json(data={"version": avatarforge.__version__}) if as_json else print(avatarforge.__version__)
