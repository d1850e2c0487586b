"""The order in which hosts are called."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from avatarforge.webhooks.host_queue import HostQueue, Permit


def all_that_may_begin(queue: HostQueue[str]) -> list[Permit[str]]:
    taken = []
    while (permit := queue.acquire()) is not None:
        taken.append(permit)
    return taken


def items(taken: list[Permit[str]]) -> list[str]:
    return [permit.item for permit in taken]


def heard_of(queue: HostQueue[str], *hosts: str) -> None:
    """The hosts have answered once."""
    for host in hosts:
        queue.put(host, "first")
        for permit in all_that_may_begin(queue):
            queue.release(permit, answered=True)


def test_a_host_gets_its_share_and_the_others_go_on() -> None:
    queue: HostQueue[str] = HostQueue(per_host=2, concurrency=8)
    heard_of(queue, "busy", "quiet")
    for number in range(1000):
        queue.put("busy", f"busy-{number}")
    queue.put("quiet", "quiet-0")

    assert items(all_that_may_begin(queue)) == ["busy-0", "quiet-0", "busy-1"]


def test_hosts_take_turns() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=4)
    heard_of(queue, "a", "b")
    for number in range(3):
        for host in ("a", "b"):
            queue.put(host, f"{host}{number}")

    assert items(all_that_may_begin(queue)) == ["a0", "b0", "a1", "b1"]


def test_an_ended_call_makes_room_for_the_next_of_its_host() -> None:
    queue: HostQueue[str] = HostQueue(per_host=1, concurrency=8)
    queue.put("a", "first")
    queue.put("a", "second")
    [first] = all_that_may_begin(queue)

    queue.release(first, answered=True)

    assert items(all_that_may_begin(queue)) == ["second"]


def test_one_host_never_gets_more_than_half_of_all_calls() -> None:
    queue: HostQueue[str] = HostQueue(per_host=100, concurrency=4)
    heard_of(queue, "busy")
    for number in range(10):
        queue.put("busy", str(number))

    assert len(all_that_may_begin(queue)) == 2


def test_a_silent_host_gets_one_call_until_it_answers() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=16)
    for number in range(20):
        queue.put("dead", str(number))
    for permit in all_that_may_begin(queue):
        queue.release(permit, answered=False)

    [probe] = all_that_may_begin(queue)
    queue.release(probe, answered=True)

    assert len(all_that_may_begin(queue)) == 4


def test_many_silent_hosts_leave_three_quarters_to_the_others() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=16)
    heard_of(queue, *(f"good-{host}" for host in range(12)))
    for host in range(50):
        queue.put(f"dead-{host}", "first")
    while first := all_that_may_begin(queue):
        for permit in first:
            queue.release(permit, answered=False)
    for host in range(50):
        for number in range(100):
            queue.put(f"dead-{host}", f"dead-{number}")
    assert len(all_that_may_begin(queue)) == 4

    for host in range(12):
        queue.put(f"good-{host}", "good")

    assert items(all_that_may_begin(queue)) == ["good"] * 12


def test_many_hosts_that_were_never_heard_of_leave_half_to_those_that_answer() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=16)
    heard_of(queue, "good")
    for host in range(100):
        queue.put(f"new-{host}", "new")
    assert items(all_that_may_begin(queue)) == ["new"] * 8

    for _ in range(10):
        queue.put("good", "good")

    assert items(all_that_may_begin(queue)) == ["good"] * 4


def test_busy_hosts_do_not_keep_silent_ones_from_being_tried() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=8)
    queue.put("dead", "first")
    [first] = all_that_may_begin(queue)
    queue.release(first, answered=False)
    for host in range(50):
        for number in range(10):
            queue.put(f"good-{host}", str(number))
    queue.put("dead", "again")

    assert "again" in items(all_that_may_begin(queue))


def test_a_call_that_never_came_to_the_host_says_nothing_of_it() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=8)
    heard_of(queue, "a")
    queue.put("a", "dropped")
    [dropped] = all_that_may_begin(queue)
    queue.release(dropped, answered=None)
    for number in range(8):
        queue.put("a", str(number))

    assert len(all_that_may_begin(queue)) == 4


def test_silence_is_remembered_of_so_many_hosts_only() -> None:
    queue: HostQueue[str] = HostQueue(per_host=4, concurrency=8)
    queue.MAX_REMEMBERED_HOSTS = 2
    hosts = ("a", "b", "c", "d", "e", "f")
    for host in hosts:
        queue.put(host, "first")
        [first] = all_that_may_begin(queue)
        queue.release(first, answered=False)
    for host in hosts:
        queue.put(host, host)

    # The last two are silent, which leaves them a quarter; the others are new again, with half.
    assert sorted(items(all_that_may_begin(queue))) == list(hosts)


@given(
    st.integers(1, 5),
    st.integers(2, 9),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([True, False, None])), max_size=80),
    st.randoms(use_true_random=False),
)
def test_whatever_happens_limits_hold_and_everything_gets_its_turn(
    per_host: int, concurrency: int, arrivals: list[tuple[str, bool | None]], random: Random
) -> None:
    queue: HostQueue[tuple[int, str, bool | None]] = HostQueue(per_host=per_host, concurrency=concurrency)
    under_way: list[Permit[tuple[int, str, bool | None]]] = []
    seen: list[int] = []

    def begin() -> None:
        while (permit := queue.acquire()) is not None:
            under_way.append(permit)
            seen.append(permit.item[0])
        assert queue.calls == len(under_way) <= concurrency
        for host in "abcdef":
            assert sum(permit.item[1] == host for permit in under_way) <= per_host

    def end_one() -> None:
        permit = under_way.pop(random.randrange(len(under_way)))
        queue.release(permit, answered=permit.item[2])

    for number, (host, answered) in enumerate(arrivals):
        queue.put(host, (number, host, answered))
        begin()
        if under_way and number % 3 == 0:
            end_one()
            begin()
    while under_way:
        end_one()
        begin()

    assert sorted(seen) == list(range(len(arrivals)))
