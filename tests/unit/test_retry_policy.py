"""When a delivery is tried again."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatarforge.domain.deliveries import DeliveryAttempt, DeliveryState, WebhookDelivery
from avatarforge.webhooks.retry_policy import (
    DEFAULT_RETRY_DELAYS,
    MAX_RETRY_AFTER,
    apply_attempt,
    parse_retry_after,
    random_jitter,
)
from tests.deliveries import a_delivery, a_finished_job
from tests.factories import NOON


def a_fresh_delivery() -> WebhookDelivery:
    return a_delivery(a_finished_job(), "https://example.org/", next_at=NOON)


def attempt(status: int | None, at: datetime = NOON, seconds: float = 2) -> DeliveryAttempt:
    return DeliveryAttempt(at=at, seconds=seconds, status=status, answer="")


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivery(status: int) -> None:
    delivery = a_fresh_delivery()

    assert apply_attempt(delivery, attempt(status)) == replace(
        delivery, state=DeliveryState.DELIVERED, tries=1, next_at=None
    )


def test_gone_ends_a_delivery_at_once() -> None:
    delivery = a_fresh_delivery()

    assert apply_attempt(delivery, attempt(410)) == replace(
        delivery, state=DeliveryState.GIVEN_UP, tries=1, next_at=None
    )


@pytest.mark.parametrize("status", [None, 199, 301, 302, 304, 307, 308, 400, 401, 404, 429, 500, 502, 503])
def test_everything_else_is_tried_again(status: int | None) -> None:
    delivery = a_fresh_delivery()

    assert apply_attempt(delivery, attempt(status), jitter=lambda: 1) == replace(
        delivery, tries=1, next_at=NOON + timedelta(seconds=2 + 5)
    )


def test_a_delivery_is_given_up_after_ten_calls_in_about_three_days() -> None:
    delivery, at, calls = a_fresh_delivery(), NOON, 0
    while delivery.state is DeliveryState.PENDING:
        assert delivery.next_at is not None
        at = delivery.next_at
        delivery = apply_attempt(delivery, attempt(500, at, seconds=0), jitter=lambda: 1)
        calls += 1

    assert delivery.state is DeliveryState.GIVEN_UP
    assert calls == delivery.tries == 10
    assert at - NOON == timedelta(hours=75, minutes=35, seconds=5)


def test_pauses_vary_by_a_fifth() -> None:
    jitters = [random_jitter() for _ in range(1000)]

    assert 0.8 <= min(jitters) < 0.85
    assert 1.15 < max(jitters) <= 1.2


def test_a_receiver_can_ask_for_a_longer_pause_and_not_for_a_shorter_one() -> None:
    delivery = replace(a_fresh_delivery(), tries=1)
    ended = NOON + timedelta(seconds=2)

    longer = apply_attempt(delivery, attempt(503), timedelta(hours=2), jitter=lambda: 1)
    shorter = apply_attempt(delivery, attempt(503), timedelta(seconds=1), jitter=lambda: 1)

    assert longer.next_at == ended + timedelta(hours=2)
    assert shorter.next_at == ended + DEFAULT_RETRY_DELAYS[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", timedelta()),
        ("120", timedelta(minutes=2)),
        (" 120 ", timedelta(minutes=2)),
        ("86401", MAX_RETRY_AFTER),
        ("9" * 400, MAX_RETRY_AFTER),
        ("Sun, 17 May 2026 12:30:00 GMT", timedelta(minutes=30)),
        ("Sun, 17 May 2026 12:30:00 -0000", timedelta(minutes=30)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("Sun, 17 May 2020 12:00:00 GMT", timedelta()),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: timedelta | None) -> None:
    now = NOON.replace(microsecond=0)

    assert parse_retry_after(429, text, now) == expected
    assert parse_retry_after(503, text, now) == expected


@pytest.mark.parametrize("status", [200, 301, 404, 500])
def test_retry_after_means_nothing_with_other_answers(status: int) -> None:
    assert parse_retry_after(status, "120", NOON) is None


@given(st.text())
def test_no_retry_after_breaks_anything(text: str) -> None:
    expected = parse_retry_after(503, text, datetime(2026, 1, 1, tzinfo=UTC))

    assert expected is None or timedelta() <= expected <= MAX_RETRY_AFTER
