"""Signatures, verified by the specification's own package."""

import base64
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from avatarforge.settings import SettingsError, WebhookSettings
from avatarforge.webhooks.signing import Signer, derive_secret, new_secret

BODY = '{"jobId":"1","text":"ünï"}'.encode()


def signed(*secrets: str) -> dict[str, str]:
    return dict(Signer(secrets).headers("msg_1_2", int(time.time()), BODY))


def test_a_signature_is_verified_by_the_official_package() -> None:
    secret = new_secret()

    assert Webhook(secret).verify(BODY, signed(secret)) == {"jobId": "1", "text": "ünï"}


def test_the_signature_is_the_one_of_the_specification() -> None:
    secret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"

    headers = dict(Signer([secret]).headers("msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1649367553, b'{"a":1}'))

    expected = Webhook(secret)
    assert headers["webhook-id"] == "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"
    assert headers["webhook-timestamp"] == "1649367553"
    at = datetime.fromtimestamp(1649367553, UTC)
    assert headers["webhook-signature"] == expected.sign(headers["webhook-id"], at, '{"a":1}')


def test_while_secrets_are_rotated_both_verify() -> None:
    old, new = new_secret(), new_secret()

    headers = signed(old, new)

    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (old, new):
        Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers)


def test_a_changed_body_is_not_verified() -> None:
    secret = new_secret()

    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY + b" ", signed(secret))


@pytest.mark.parametrize("size", [24, 64])
def test_secrets_of_24_to_64_bytes_are_taken(size: int) -> None:
    assert Signer(["whsec_" + base64.b64encode(bytes(size)).decode()]).can_sign


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ("topsecrettopsecrettopsecret", "does not begin with 'whsec_'"),
        ("whsec_", "has 0 bytes, but it must have 24 to 64"),
        ("whsec_" + base64.b64encode(bytes(range(23))).decode(), "has 23 bytes"),
        ("whsec_" + base64.b64encode(bytes(range(65))).decode(), "has 65 bytes"),
        ("whsec_not*base64", "is not base64"),
        ("whsec_QUJD=QUJ", "is not base64"),
    ],
)
def test_a_wrong_secret_is_named_by_its_place_and_not_shown(secret: str, reason: str) -> None:
    with pytest.raises(SettingsError, match="secret 2 of 2") as refusal:
        Signer([new_secret(), secret])

    told = str(refusal.value)
    assert reason in told
    assert "AVATARFORGE_WEBHOOK_SECRETS" in told
    assert secret == "whsec_" or secret not in told


def test_secrets_come_separated_by_commas() -> None:
    settings = WebhookSettings.model_validate({"secrets": " whsec_a , whsec_b,, "})

    assert settings.signing_secrets == ("whsec_a", "whsec_b")
    assert "whsec_a" not in repr(settings)


def test_without_secrets_nothing_can_be_signed() -> None:
    assert not Signer(()).can_sign


def test_a_receivers_own_secret_verifies_its_webhooks_and_no_others() -> None:
    ours = new_secret()
    headers = dict(Signer([ours]).headers("msg_1_2", int(time.time()), BODY, ["of-ana"]))

    for secret in (ours, derive_secret(ours, "of-ana")):
        Webhook(secret).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(derive_secret(ours, "of-ben")).verify(BODY, headers)
