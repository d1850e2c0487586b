import traceback
from pathlib import Path
from typing import Any

import pytest

from avatarforge.settings import Settings, SettingsError, load_settings, variables


def test_the_default_is_the_embedded_one() -> None:
    settings = load_settings({}, {})
    assert settings.database_url == f"sqlite:///{Path('data').resolve()}/avatarforge.db"
    assert (settings.http.host, settings.diffusion.num_gpus, settings.diffusion.model) == (
        "127.0.0.1",
        0,
        "avatar-mini",
    )


def test_the_environment_wins_over_arguments() -> None:
    settings = load_settings({"http": {"port": 1, "host": "::1"}}, {"AVATARFORGE_HTTP_PORT": "8123"})
    assert (settings.http.port, settings.http.host) == (8123, "::1")


def test_every_setting_has_a_variable_and_says_what_it_means() -> None:
    names = variables()
    assert {"AVATARFORGE_DATA_DIR", "AVATARFORGE_HTTP_PORT", "AVATARFORGE_GRPC_PORT"} <= set(names)
    assert len(set(names.values())) == len(names)
    for field in Settings.model_fields.values():
        group = field.annotation
        inner = group.model_fields.values() if hasattr(group, "model_fields") else [field]
        assert all(setting.description for setting in inner)


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (
            {"AVATARFORGE_HTTP_PRT": "1"},
            "AVATARFORGE_HTTP_PRT is not a setting.*Did you mean AVATARFORGE_HTTP_PORT",
        ),
        (
            {"AVATARFORGE_WEBHOOK_RETRY_DELAYS_SECONDS": "5, soon"},
            r"webhook.retry_delays_seconds .* is '5, soon': .*numbers of seconds",
        ),
        ({"AVATARFORGE_REMOTE_POLICY": "remote"}, r"remote.policy .* is 'remote': .*set remote.url"),
        ({"AVATARFORGE_REMOTE_URL": "ftp://host"}, r"remote.url \(AVATARFORGE_REMOTE_URL\) is 'ftp://host'"),
        ({"AVATARFORGE_STORAGE_ENDPOINT_URL": "minio:9000"}, r"storage.endpoint_url .* is 'minio:9000'"),
        ({"AVATARFORGE_REMOTE_PASSWORD": "s3cret"}, r"remote.username .* is None: .*belong together"),
        ({"AVATARFORGE_HTTP_PORT": "http"}, r"http.port \(AVATARFORGE_HTTP_PORT\) is 'http'"),
        ({"AVATARFORGE_HTTP_PORT": "70000"}, "less than or equal to 65535"),
        ({"AVATARFORGE_DIFFUSION_DEVICE": "tpu"}, "'auto', 'cpu', 'cuda' or 'mps'"),
    ],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        load_settings({}, environ)


def test_an_unknown_argument_is_named() -> None:
    with pytest.raises(SettingsError, match=r"no setting 'http\.prot'"):
        load_settings({"http": {"prot": 1}}, {})


def test_settings_travel_as_plain_values_and_hide_their_secrets_in_print() -> None:
    url = "mysql+pymysql://forge:s3cret@db/forge"
    settings = load_settings({}, {"AVATARFORGE_DATABASE_URL": url, "AVATARFORGE_DATA_DIR": "/tmp/x"})
    assert load_settings(settings.as_arguments(), {}) == settings
    assert settings.database_url == url
    assert "s3cret" not in repr(settings)


def test_other_variables_are_left_alone() -> None:
    assert load_settings({}, {"HOME": "/root", "RAY_ADDRESS": "x"}) == load_settings({}, {})


@pytest.mark.parametrize(
    "arguments",
    [
        {"access": {"link_secrets": "hunter2"}},
        {"webhook": {"secrets": ["hunter2"]}},
        {"database": "mysql+pymysql://forge:hunter2@db/avatarforge"},
        {"remote": {"password": {"hunter2": 1}}},
    ],
)
def test_a_secret_that_is_refused_is_not_told(arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(arguments, environ={})

    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("text", ["shop.example", "https://shop.example/", "*", "https://*.example"])
def test_an_origin_that_browsers_would_not_send_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"access\.cors_origins"):
        load_settings({}, environ={"AVATARFORGE_ACCESS_CORS_ORIGINS": text})


def test_links_last_by_default_no_longer_than_at_most() -> None:
    with pytest.raises(SettingsError, match=r"max_link_seconds.*access\.link_seconds \(300\) or more"):
        load_settings({"access": {"max_link_seconds": 299}}, environ={})


def test_variables_of_clients_are_no_settings() -> None:
    environ = {"AVATARFORGE_API_KEY": "afk_x", "AVATARFORGE_URL": "http://forge:8000"}

    assert load_settings({}, environ=environ) == Settings()
