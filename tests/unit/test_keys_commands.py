"""`avatarforge keys`, over the embedded database."""

import json
import os
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from avatarforge.access.key_cache import hash_of, key_id_of
from avatarforge.cli import app
from avatarforge.settings import load_settings, variables
from tests.keys import records_of
from tests.servers.mariadb import free_port


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AVATARFORGE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments])


def listed() -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads(run("list", "--json").stdout)
    return keys


def test_a_key_is_shown_once_and_its_hash_is_kept() -> None:
    made = run("create", "shop", "--customer", "ana", "--customer", "shop-*", "--expires-days", "1")
    text = made.stdout.strip()
    [key] = records_of(load_settings()).list_all()

    assert made.exit_code == 0, made.output
    assert key_id_of(text) == key.key_id
    assert (key.name, key.customers, key.is_admin) == ("shop", ("ana", "shop-*"), False)
    assert key.secret_hash == hash_of(text)
    assert key.expires_at is not None
    assert 86_000 < (key.expires_at - datetime.now(UTC)).total_seconds() <= 86_400
    for shown in (run("list").stdout, run("list", "--json").stdout):
        assert key.key_id in shown
        assert text not in shown
        assert key.secret_hash not in shown


def test_the_list_tells_what_each_key_is_for_and_whether_it_is_valid() -> None:
    run("create", "ops", "--all-customers", "--admin")
    run("create", "old", "--customer", "ana", "--expires-days", "0")
    watcher = json.loads(run("create", "watcher", "--admin", "--json").stdout)
    assert run("revoke", watcher["id"]).exit_code == 0

    assert [(key["name"], key["customers"], key["administers"], key["state"]) for key in listed()] == [
        ("ops", ["*"], True, "valid"),
        ("old", ["ana"], False, "expired"),
        ("watcher", [], True, "revoked"),
    ]
    assert "every customer and administration" in run("list").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "x"), "--customer ID"),
        (("create", "x", "--customer", "a/b"), "'a/b'"),
        (("create", " ", "--admin"), "name"),
        (("create", "x", "--customer", "ana", "--expires-days", "inf"), "36500"),
        (("create", "x", "--customer", "ana", "--expires-days", "1e12"), "36500"),
        (("revoke", "nobody"), "'nobody'"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_makes_nothing(arguments: tuple[str, ...], told: str) -> None:
    refused = run(*arguments)

    assert refused.exit_code != 0
    assert told in refused.output
    assert "Traceback" not in refused.output
    assert listed() == []


def test_a_key_that_is_none_is_refused_without_being_told() -> None:
    refused = CliRunner().invoke(app, ["jobs", "list", "--api-key", "af_sécret"])

    assert refused.exit_code == 2
    assert "The API key" in refused.output
    assert "sécret" not in refused.output


def test_a_server_that_others_reach_does_not_start_without_a_key() -> None:
    run("create", "old", "--customer", "ana", "--expires-days", "0")
    refused = CliRunner().invoke(app, ["up", "--host", "0.0.0.0"])

    assert refused.exit_code == 1
    assert "avatarforge keys create" in refused.output
    assert "--insecure" in refused.output
    assert "AVATARFORGE_HTTP_HOST" not in os.environ


def test_a_database_that_does_not_answer_is_told_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"mysql+pymysql://forge:marked-password@127.0.0.1:{free_port()}/avatarforge"
    monkeypatch.setenv("AVATARFORGE_DATABASE_URL", url)
    refused = run("list")

    assert "Connection refused" in refused.output
    assert refused.exit_code == 1
    assert "marked-password" not in refused.output
    assert "marked-password" not in "".join(traceback.format_exception(refused.exception))
