"""`avatarforge webhooks`, over the embedded database."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from avatarforge.cli import app
from avatarforge.settings import variables
from avatarforge.webhooks.signing import derive_secret, new_secret

OURS = new_secret()


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AVATARFORGE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("AVATARFORGE_WEBHOOK_SECRETS", f"{OURS},{new_secret()}")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", *arguments])


def listed() -> list[dict[str, Any]]:
    secrets: list[dict[str, Any]] = json.loads(run("list", "--json").stdout)
    return secrets


def test_a_secret_is_shown_once_and_is_nowhere_on_record(tmp_path: Path) -> None:
    made = run("create", "shop-*")
    text = made.stdout.strip()

    [secret] = listed()
    assert text == derive_secret(OURS, secret["id"])
    assert (secret["customers"], secret["expiresAt"]) == ("shop-*", None)
    assert text not in run("list").stdout
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret["id"].encode() in kept
    assert text.removeprefix("whsec_").encode() not in kept


def test_a_rotated_secret_expires_after_the_overlap() -> None:
    old = json.loads(run("create", "ana", "--json").stdout)
    new = json.loads(run("rotate", old["id"], "--overlap-days", "2", "--json").stdout)

    assert new["customers"] == "ana"
    assert new["secret"] != old["secret"]
    [first, second] = listed()
    assert (first["id"], second["id"], second["expiresAt"]) == (old["id"], new["id"], None)
    left = datetime.fromisoformat(first["expiresAt"]) - datetime.now(UTC)
    assert timedelta(days=1.9) < left <= timedelta(days=2)


@pytest.mark.parametrize(
    ("arguments", "told"), [(("create", "a/b"), "'a/b'"), (("rotate", "none"), "'none'")]
)
def test_a_wrong_argument_is_one_sentence(arguments: tuple[str, ...], told: str) -> None:
    refused = run(*arguments)
    assert refused.exit_code == 1
    assert told in refused.output
    assert listed() == []


def test_without_a_secret_of_the_server_none_can_be_derived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AVATARFORGE_WEBHOOK_SECRETS")
    assert "AVATARFORGE_WEBHOOK_SECRETS" in run("create", "ana").output
    assert listed() == []
    (tmp_path / "webhook-secret").write_text(OURS, encoding="ascii")
    assert run("create", "ana").exit_code == 0


@pytest.mark.parametrize("command", ["create", "rotate"])
def test_a_bad_secret_of_the_server_leaves_nothing_on_record(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("create", "ana")
    before = listed()
    monkeypatch.setenv("AVATARFORGE_WEBHOOK_SECRETS", "abc")

    refused = run(command, before[0]["id"])

    assert refused.exit_code == 1
    assert "AVATARFORGE_WEBHOOK_SECRETS" in refused.stderr
    assert listed() == before
