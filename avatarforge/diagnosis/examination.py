"""All checks, in the order in which their failures should be mended."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from avatarforge.diagnosis.data import (
    check_data_folder,
    check_database,
    check_keys,
    check_migrations,
    check_modes,
    check_server,
    check_storage,
)
from avatarforge.diagnosis.findings import Finding, State, make_failure
from avatarforge.diagnosis.machine import check_gpu, check_model, check_port
from avatarforge.diagnosis.redis import check_redis
from avatarforge.settings import Settings
from avatarforge.webhooks.signing import Signer


def examine(settings: Settings, gpu: bool | None = None) -> Iterator[Finding]:
    """Yield each check's findings, as soon as they come. `gpu` says whether one must be here; by default the
    settings do. A check that breaks is a finding, too."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("webhook secrets", partial(_check_secrets, settings)),
        ("data folder", partial(check_data_folder, settings)),
        ("file modes", partial(check_modes, settings)),
        ("database", partial(check_database, settings)),
        ("database server", partial(check_server, settings)),
        ("migrations", partial(check_migrations, settings)),
        ("API keys", partial(check_keys, settings)),
        ("storage", partial(check_storage, settings)),
        ("Redis", check_redis),
        ("GPU", partial(check_gpu, settings, gpu)),
        ("model", partial(check_model, settings)),
        ("REST port", partial(check_port, settings, "REST", settings.http.port)),
        ("gRPC port", partial(check_port, settings, "gRPC", settings.grpc.port)),
    )
    for name, check in checks:
        try:
            finding = check()
        except Exception as error:
            # The edge of a check: the others are worth their answers.
            finding = make_failure(
                f"{type(error).__name__}: {error}", "This is unexpected: please report it."
            )
        yield replace(finding, check=name)


def _check_secrets(settings: Settings) -> Finding:
    secrets = settings.webhook.signing_secrets
    try:
        Signer(secrets)
    except ValueError as error:
        return make_failure(error, "AVATARFORGE_WEBHOOK_SECRETS holds secrets of the form whsec_… .")
    if secrets:
        return Finding(State.OK, f"{len(secrets)}")
    if (made := settings.webhook_secret_file).exists():
        return Finding(State.OK, f"none is set; `up` uses the one it made, {made}")
    return Finding(State.ABSENT, "none: uploads with a callbackUrl are refused; `up` makes one")
