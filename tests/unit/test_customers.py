import pytest

from avatarforge.domain.customers import shard_of, validate_customer_id
from avatarforge.domain.errors import InvalidCustomerId


@pytest.mark.parametrize("text", ["a", "Ana", "ana", "0", "a.b_c~d-e", "x" * 64])
def test_ids_of_the_grammar_are_kept_as_they_are(text: str) -> None:
    assert validate_customer_id(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", "-a", "a/b", "a b", "x" * 65, "x" * 500, "josé", "\uff41", "a\n", "a\x00", "%41"]
)
def test_other_ids_are_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(InvalidCustomerId, match="1 to 64 characters"):
        validate_customer_id(text)


def test_a_customer_stays_with_its_shard() -> None:
    """The numbers are on record: another hash would send customers to trackers that do not know them."""
    assert [shard_of(customer, 8) for customer in ("ana", "Ana", "bob", "0")] == [4, 6, 2, 5]


def test_customers_spread_over_the_shards() -> None:
    counts = [0] * 4
    for number in range(4000):
        counts[shard_of(f"customer-{number}", 4)] += 1
    assert min(counts) > 900
