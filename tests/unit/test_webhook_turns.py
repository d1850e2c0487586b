"""Whose turn it is to be called."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from avatarforge.webhooks.turns import Turn, Turns


def all_that_may_begin(turns: Turns[str]) -> list[Turn[str]]:
    taken = []
    while (turn := turns.take()) is not None:
        taken.append(turn)
    return taken


def items(taken: list[Turn[str]]) -> list[str]:
    return [turn.item for turn in taken]


def heard_of(turns: Turns[str], *hosts: str) -> None:
    """The hosts have answered once."""
    for host in hosts:
        turns.put(host, "first")
        for turn in all_that_may_begin(turns):
            turns.done(turn, answered=True)


def test_a_host_gets_its_share_and_the_others_go_on() -> None:
    turns: Turns[str] = Turns(per_host=2, concurrency=8)
    heard_of(turns, "busy", "quiet")
    for number in range(1000):
        turns.put("busy", f"busy-{number}")
    turns.put("quiet", "quiet-0")

    assert items(all_that_may_begin(turns)) == ["busy-0", "quiet-0", "busy-1"]


def test_hosts_take_turns() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=4)
    heard_of(turns, "a", "b")
    for number in range(3):
        for host in ("a", "b"):
            turns.put(host, f"{host}{number}")

    assert items(all_that_may_begin(turns)) == ["a0", "b0", "a1", "b1"]


def test_an_ended_call_makes_room_for_the_next_of_its_host() -> None:
    turns: Turns[str] = Turns(per_host=1, concurrency=8)
    turns.put("a", "first")
    turns.put("a", "second")
    [first] = all_that_may_begin(turns)

    turns.done(first, answered=True)

    assert items(all_that_may_begin(turns)) == ["second"]


def test_one_host_never_gets_more_than_half_of_all_calls() -> None:
    turns: Turns[str] = Turns(per_host=100, concurrency=4)
    heard_of(turns, "busy")
    for number in range(10):
        turns.put("busy", str(number))

    assert len(all_that_may_begin(turns)) == 2


def test_a_silent_host_gets_one_call_until_it_answers() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=16)
    for number in range(20):
        turns.put("dead", str(number))
    for turn in all_that_may_begin(turns):
        turns.done(turn, answered=False)

    [probe] = all_that_may_begin(turns)
    turns.done(probe, answered=True)

    assert len(all_that_may_begin(turns)) == 4


def test_many_silent_hosts_leave_three_quarters_to_the_others() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=16)
    heard_of(turns, *(f"good-{host}" for host in range(12)))
    for host in range(50):
        turns.put(f"dead-{host}", "first")
    while first := all_that_may_begin(turns):
        for turn in first:
            turns.done(turn, answered=False)
    for host in range(50):
        for number in range(100):
            turns.put(f"dead-{host}", f"dead-{number}")
    assert len(all_that_may_begin(turns)) == 4

    for host in range(12):
        turns.put(f"good-{host}", "good")

    assert items(all_that_may_begin(turns)) == ["good"] * 12


def test_many_hosts_that_were_never_heard_of_leave_half_to_those_that_answer() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=16)
    heard_of(turns, "good")
    for host in range(100):
        turns.put(f"new-{host}", "new")
    assert items(all_that_may_begin(turns)) == ["new"] * 8

    for _ in range(10):
        turns.put("good", "good")

    assert items(all_that_may_begin(turns)) == ["good"] * 4


def test_busy_hosts_do_not_keep_silent_ones_from_being_tried() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=8)
    turns.put("dead", "first")
    [first] = all_that_may_begin(turns)
    turns.done(first, answered=False)
    for host in range(50):
        for number in range(10):
            turns.put(f"good-{host}", str(number))
    turns.put("dead", "again")

    assert "again" in items(all_that_may_begin(turns))


def test_a_call_that_never_came_to_the_host_says_nothing_of_it() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=8)
    heard_of(turns, "a")
    turns.put("a", "dropped")
    [dropped] = all_that_may_begin(turns)
    turns.done(dropped, answered=None)
    for number in range(8):
        turns.put("a", str(number))

    assert len(all_that_may_begin(turns)) == 4


def test_silence_is_remembered_of_so_many_hosts_only() -> None:
    turns: Turns[str] = Turns(per_host=4, concurrency=8)
    turns.MOST_REMEMBERED = 2
    hosts = ("a", "b", "c", "d", "e", "f")
    for host in hosts:
        turns.put(host, "first")
        [first] = all_that_may_begin(turns)
        turns.done(first, answered=False)
    for host in hosts:
        turns.put(host, host)

    # The last two are silent, which leaves them a quarter; the others are new again, with half.
    assert sorted(items(all_that_may_begin(turns))) == list(hosts)


@given(
    st.integers(1, 5),
    st.integers(2, 9),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([True, False, None])), max_size=80),
    st.randoms(use_true_random=False),
)
def test_whatever_happens_limits_hold_and_everything_gets_its_turn(
    per_host: int, concurrency: int, arrivals: list[tuple[str, bool | None]], random: Random
) -> None:
    turns: Turns[tuple[int, str, bool | None]] = Turns(per_host=per_host, concurrency=concurrency)
    under_way: list[Turn[tuple[int, str, bool | None]]] = []
    seen: list[int] = []

    def begin() -> None:
        while (turn := turns.take()) is not None:
            under_way.append(turn)
            seen.append(turn.item[0])
        assert turns.calls == len(under_way) <= concurrency
        for host in "abcdef":
            assert sum(turn.item[1] == host for turn in under_way) <= per_host

    def end_one() -> None:
        turn = under_way.pop(random.randrange(len(under_way)))
        turns.done(turn, answered=turn.item[2])

    for number, (host, answered) in enumerate(arrivals):
        turns.put(host, (number, host, answered))
        begin()
        if under_way and number % 3 == 0:
            end_one()
            begin()
    while under_way:
        end_one()
        begin()

    assert sorted(seen) == list(range(len(arrivals)))
