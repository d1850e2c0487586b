"""`avatarforge db`: the schema of the database, its shards, and whether storage has what it names."""

import os
from typing import Annotated

import typer

from avatarforge.cli.options import DataDirOption, JsonOption, to_variables
from avatarforge.cli.terminal import ExitCode, err, out, report_errors
from avatarforge.settings import Settings, SettingsError, load_settings

app = typer.Typer(help="The database: its schema and shards.", no_args_is_help=True)


@app.command("upgrade")
@report_errors
def upgrade_database(data_dir: DataDirOption = None) -> None:
    """Bring the database to this release's schema."""
    from avatarforge.persistence import upgrade

    settings = load_settings(environ={**os.environ, **to_variables(data_dir)})
    before = upgrade.current(settings.database_url) if _exists(settings) else None
    upgrade.upgrade(settings.database_url)
    after = upgrade.current(settings.database_url)
    out.print(
        f"{_format_url(settings)} is at revision {after}" + (" (as before)." if after == before else ".")
    )


@app.command("reshard")
@report_errors
def reshard_database(
    shards: Annotated[int, typer.Argument(min=1, help="The new value of tracker.shards.")],
    data_dir: DataDirOption = None,
) -> None:
    """Spread the customers over another number of shards. Stop every process first."""
    from avatarforge.persistence import open_engine, upgrade
    from avatarforge.persistence.reshard import reshard

    settings = load_settings(environ={**os.environ, **to_variables(data_dir)})
    upgrade.upgrade(settings.database_url)
    engine = open_engine(settings.database, settings.database_url)
    try:
        moved = reshard(engine, shards)
    finally:
        engine.dispose()
    out.print(f"{moved} customers are spread over {shards} shards. Set tracker.shards to {shards} and start.")


@app.command("verify")
@report_errors
def verify_objects(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Name each image on record that storage lacks, as after a restore. Exits with 1 if there is one."""
    from avatarforge.persistence import JobRepository, open_engine
    from avatarforge.storage import open_storage
    from avatarforge.storage.keys import ALL_JOBS

    settings = load_settings(environ={**os.environ, **to_variables(data_dir)})
    if not _exists(settings):
        raise SettingsError(f"There is no database at {_format_url(settings)}.")
    records = JobRepository(open_engine(settings.database, settings.database_url))
    try:
        # In this order: of an upload the object comes first.
        recorded = records.list_object_keys()
        missing = recorded - {stored.key for stored in open_storage(settings).list(ALL_JOBS)}
        if missing:
            # Not those that were erased meanwhile.
            missing &= records.list_object_keys()
    finally:
        records.close()
    if as_json:
        out.print_json(data={"recorded": len(recorded), "missing": sorted(missing)})
    else:
        print(*sorted(missing), sep="\n", end="\n" if missing else "")
        err.print(f"{len(missing)} of {len(recorded)} images on record are missing.")
    if missing:
        raise SystemExit(ExitCode.FAILURE)


@app.command("current")
@report_errors
def show_database(data_dir: DataDirOption = None, as_json: JsonOption = False) -> None:
    """Show the database's schema revision. Exits with 1 if it is not this release's."""
    from avatarforge.persistence import upgrade

    settings = load_settings(environ={**os.environ, **to_variables(data_dir)})
    # Reading a database that does not exist would create an empty one.
    revision = upgrade.current(settings.database_url) if _exists(settings) else None
    latest = upgrade.latest()
    if as_json:
        out.print_json(data={"current": revision, "latest": latest, "upToDate": revision == latest})
    else:
        state = (
            "up to date" if revision == latest else f"the latest is {latest}: run `avatarforge db upgrade`"
        )
        out.print(f"{_format_url(settings)}: {revision or 'empty'} ({state})")
    if revision != latest:
        raise SystemExit(ExitCode.FAILURE)


def _exists(settings: Settings) -> bool:
    return settings.database.url is not None or (settings.data_dir / "avatarforge.db").exists()


def _format_url(settings: Settings) -> str:
    from sqlalchemy import make_url

    return make_url(settings.database_url).render_as_string(hide_password=True)
