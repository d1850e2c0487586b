"""API keys: their text, their scope, and the buckets that limit their rate."""

from datetime import UTC, datetime, timedelta

import pytest

from avatarforge.access.key_cache import hash_of, key_id_of, matches, new_key
from avatarforge.access.rate_limit import RateLimits
from avatarforge.access.signed_links import LinkSigner
from avatarforge.domain.access import validate_name, validate_pattern
from avatarforge.domain.errors import InvalidRequest, LinkInvalid, LinksUnavailable, RateLimited
from tests.keys import an_api_key

PATH = "/customers/ana/photos/019a0f3c-7d5e-7c3a-9b1e-0d6f5a4b3c2d/generated"
SECRET, OLDER = "s" * 32, "o" * 32


def test_a_key_tells_its_id_and_matches_only_its_own_hash() -> None:
    key_id, text = new_key()
    _, other = new_key()

    assert key_id_of(text) == key_id
    assert matches(text, hash_of(text))
    assert not matches(other, hash_of(text))
    assert text not in hash_of(text)


@pytest.mark.parametrize(
    "text", ["", "afk_", "afk_0123456789ab", "Bearer", "afk_0123456789ab_short", "x" * 10_000, "afk_\n_"]
)
def test_what_is_no_key_has_no_id(text: str) -> None:
    assert key_id_of(text) is None


@pytest.mark.parametrize(
    ("customers", "reached", "beyond"),
    [
        (("ana",), ["ana"], ["Ana", "anabel", "bob"]),
        (("shop-*",), ["shop-1", "shop-"], ["shop", "Shop-1", "ana"]),
        (("ana", "bob"), ["ana", "bob"], ["carl"]),
        (("*",), ["ana", "x"], []),
        ((), [], ["ana", "*"]),
    ],
)
def test_a_key_reaches_the_customers_of_its_scope(
    customers: tuple[str, ...], reached: list[str], beyond: list[str]
) -> None:
    key, _ = an_api_key(*customers)

    assert [customer for customer in [*reached, *beyond] if key.can_access(customer)] == reached
    assert key.can_access_everybody is (customers == ("*",))


@pytest.mark.parametrize("pattern", ["", "**", "*a", "a*b", "a b", "x" * 65, "ana/bob", "ana\n"])
def test_a_scope_that_could_match_nobody_is_refused_with_its_text(pattern: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validate_pattern(pattern)
    assert refused.value.value == pattern


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 129])
def test_a_name_that_cannot_be_shown_on_one_line_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        validate_name(name)


def test_a_key_is_valid_until_it_expires_or_is_revoked() -> None:
    key, _ = an_api_key("ana", expires_in=timedelta(hours=1))
    endless, _ = an_api_key("ana")

    assert key.is_valid(key.created_at + timedelta(minutes=59))
    assert not key.is_valid(key.created_at + timedelta(hours=1))
    assert endless.is_valid(datetime(2999, 1, 1, tzinfo=UTC))


def test_a_key_may_make_a_burst_and_then_as_many_requests_as_its_bucket_gets() -> None:
    now = 0.0
    limits = RateLimits(2, 3, lambda: now)
    for _ in range(3):
        limits.take("a")
    with pytest.raises(RateLimited) as refused:
        limits.take("a")
    assert refused.value.retry_after == 1
    limits.take("another key")

    now = 0.5
    limits.take("a")
    with pytest.raises(RateLimited):
        limits.take("a")
    now = 1000.0
    for _ in range(3):
        limits.take("a")
    with pytest.raises(RateLimited):
        limits.take("a")


def test_a_slow_rate_tells_how_long_to_wait() -> None:
    limits = RateLimits(0.1, 1, lambda: 0.0)
    limits.take("a")
    with pytest.raises(RateLimited) as refused:
        limits.take("a")
    assert refused.value.retry_after == 10


def test_full_buckets_are_forgotten() -> None:
    now = 0.0
    limits = RateLimits(1, 1, lambda: now)
    for number in range(RateLimits.SWEEP_THRESHOLD):
        limits.take(str(number))
    now = 10.0
    limits.take("one more")

    assert len(limits) == 1


def test_a_rate_of_nought_is_no_limit() -> None:
    limits = RateLimits(0, 1, lambda: 0.0)
    for _ in range(100):
        limits.take("a")


def test_a_link_works_for_its_path_until_its_end() -> None:
    signer = LinkSigner([SECRET])
    query = _query(signer.sign(PATH, 1000))

    signer.check(PATH, query, 999.9)
    for path, now in ((PATH, 1000.0), (PATH.replace("generated", "original"), 1.0), (PATH + "x", 1.0)):
        with pytest.raises(LinkInvalid):
            signer.check(path, query, now)


@pytest.mark.parametrize(
    "changed",
    [
        {"expires": "2000"},
        {"expires": "-1"},
        {"expires": "1e9"},
        {"expires": "9" * 5000},
        {"expires": ""},
        {"signature": ""},
        {"signature": "ü" * 43},
        {"signature": "A" * 43},
    ],
)
def test_a_link_that_was_changed_is_refused(changed: dict[str, str]) -> None:
    signer = LinkSigner([SECRET])
    with pytest.raises(LinkInvalid):
        signer.check(PATH, {**_query(signer.sign(PATH, 1000)), **changed}, 1.0)


def test_links_of_an_older_secret_work_while_it_is_rotated() -> None:
    link = LinkSigner([OLDER]).sign(PATH, 1000)

    LinkSigner([SECRET, OLDER]).check(PATH, _query(link), 1.0)
    with pytest.raises(LinkInvalid):
        LinkSigner([SECRET]).check(PATH, _query(link), 1.0)


def test_without_a_secret_nothing_is_signed_nor_accepted() -> None:
    with pytest.raises(LinksUnavailable):
        LinkSigner([]).sign(PATH, 1000)
    with pytest.raises(LinkInvalid):
        LinkSigner([]).check(PATH, _query(LinkSigner([SECRET]).sign(PATH, 1000)), 1.0)


def _query(link: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in link.partition("?")[2].split("&"))
