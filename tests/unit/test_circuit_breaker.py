from contextlib import suppress

import pytest

from avatarforge.diffusion.remote import CircuitBreaker
from avatarforge.diffusion.remote.breaker import Circuit
from avatarforge.domain.errors import RemoteFailed, RemoteRefused, RemoteUnavailable


class Bench:
    """A breaker that opens after two failures for ten seconds, with a clock to set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.breaker = CircuitBreaker(2, 10.0, clock=lambda: self.now)

    def request(self, error: BaseException | None = None) -> None:
        """One request that ends in this way."""
        with self.breaker.guard():
            if error is not None:
                raise error

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with suppress(RemoteFailed):
                self.request(RemoteFailed("broken"))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_it_opens_after_so_many_failures_in_a_row(bench: Bench) -> None:
    bench.fail()
    bench.request()
    bench.fail()
    assert bench.breaker.circuit is Circuit.CLOSED
    bench.fail()
    assert bench.breaker.circuit is Circuit.OPEN
    bench.now += 4
    with pytest.raises(RemoteUnavailable) as refused:
        bench.request()
    assert refused.value.away_seconds == 6


def test_a_trial_that_succeeds_closes_it(bench: Bench) -> None:
    bench.fail(2)
    bench.now += 10
    assert bench.breaker.circuit is Circuit.HALF_OPEN
    bench.request()
    assert bench.breaker.circuit is Circuit.CLOSED


def test_a_trial_that_fails_opens_it_again_for_the_whole_time(bench: Bench) -> None:
    bench.fail(2)
    bench.now += 10
    with pytest.raises(RemoteUnavailable) as failed:
        bench.request(RemoteUnavailable("refused", 1.0))
    assert failed.value.away_seconds == 10
    assert bench.breaker.circuit is Circuit.OPEN


def test_only_one_request_tries_at_a_time(bench: Bench) -> None:
    bench.fail(2)
    bench.now += 10
    with bench.breaker.guard(), pytest.raises(RemoteUnavailable):
        bench.request()
    bench.request()
    assert bench.breaker.circuit is Circuit.CLOSED


def test_a_cancelled_trial_decides_nothing(bench: Bench) -> None:
    bench.fail(2)
    bench.now += 10
    with pytest.raises(KeyboardInterrupt):
        bench.request(KeyboardInterrupt())
    assert bench.breaker.circuit is Circuit.HALF_OPEN
    bench.request()
    assert bench.breaker.circuit is Circuit.CLOSED


def test_a_refused_request_shows_that_the_server_answers(bench: Bench) -> None:
    bench.fail()
    with suppress(RemoteRefused):
        bench.request(RemoteRefused("wrong"))
    bench.fail()
    assert bench.breaker.circuit is Circuit.CLOSED
