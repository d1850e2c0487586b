from hypothesis import given
from hypothesis import strategies as st

from avatarforge.tracker.line import WaitingLine
from tests.factories import a_job


def ids_of(line: WaitingLine) -> list[str]:
    popped = []
    while (job := line.pop()) is not None:
        popped.append(job.job_id)
    return popped


def test_jobs_of_one_customer_go_oldest_first() -> None:
    jobs = [a_job() for _ in range(5)]
    line = WaitingLine()
    for job in reversed(jobs):
        line.add(job)
    assert ids_of(line) == [job.job_id for job in jobs]


def test_customers_take_turns() -> None:
    line = WaitingLine()
    many = [a_job(customer_id="many") for _ in range(100)]
    for job in many:
        line.add(job)
    single = a_job(customer_id="single")
    line.add(single)
    assert ids_of(line)[:3] == [many[0].job_id, single.job_id, many[1].job_id]


def test_a_higher_priority_goes_first() -> None:
    line = WaitingLine()
    usual, urgent, idle = a_job(), a_job(priority=5), a_job(priority=-5)
    for job in (idle, usual, urgent):
        line.add(job)
    assert ids_of(line) == [urgent.job_id, usual.job_id, idle.job_id]


def test_a_job_that_left_the_line_costs_its_customer_no_turn() -> None:
    line = WaitingLine()
    gone, stays = a_job(customer_id="a"), a_job(customer_id="a")
    other = a_job(customer_id="b")
    for job in (gone, stays, other):
        line.add(job)
    assert line.remove(gone.job_id) == gone
    assert ids_of(line) == [stays.job_id, other.job_id]


def test_a_job_stands_in_line_once() -> None:
    line = WaitingLine()
    job = a_job()
    line.add(job)
    line.add(job)
    assert ids_of(line) == [job.job_id]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.booleans(), st.booleans()), max_size=40)
)
def test_the_told_order_is_the_order_in_which_they_go(
    moves: list[tuple[str, int, bool, bool]],
) -> None:
    line = WaitingLine()
    inside: set[str] = set()
    for customer_id, priority, removed, popped in moves:
        job = a_job(customer_id=customer_id, priority=priority)
        line.add(job)
        inside.add(job.job_id)
        if removed:
            line.remove(job.job_id)
            inside.discard(job.job_id)
        if popped and (gone := line.pop()) is not None:
            inside.discard(gone.job_id)
    assert len(line) == len(inside)
    told = line.in_order(100)
    assert list(told) == ids_of(line)
    assert set(told) == inside


def test_a_job_that_does_not_fit_keeps_its_place_and_blocks_nobody() -> None:
    line = WaitingLine()
    first, second, other = a_job(), a_job(), a_job(customer_id="bo")
    for job in (first, second, other):
        line.add(job)
    assert line.pop(lambda job: job is not first) is second
    assert line.pop(lambda job: job is not first) is other
    assert line.pop(lambda job: job is not first) is None
    assert line.pop() is first
    assert line.pop() is None


def test_a_job_that_was_taken_out_of_turn_can_come_back() -> None:
    line = WaitingLine()
    first, second = a_job(), a_job()
    for job in (first, second):
        line.add(job)
    assert line.pop(lambda job: job is second) is second
    line.add(second)
    assert line.in_order(9) == (first.job_id, second.job_id)
    assert ids_of(line) == [first.job_id, second.job_id]


def test_fitting_jobs_of_a_lower_priority_go_when_none_above_fits() -> None:
    line = WaitingLine()
    urgent, usual = a_job(priority=5), a_job()
    for job in (urgent, usual):
        line.add(job)
    assert line.has(lambda job: job is usual)
    assert line.pop(lambda job: job is not urgent) is usual
    assert not line.has(lambda job: job is not urgent)
    assert ids_of(line) == [urgent.job_id]


def test_a_customer_who_sends_one_job_after_the_other_has_no_two_turns_while_others_wait() -> None:
    line = WaitingLine()
    ana, ana_too, ben, ben_too = a_job(), a_job(), a_job(customer_id="ben"), a_job(customer_id="ben")
    for job in (ana, ana_too, ben):
        line.add(job)
    assert [line.pop(), line.pop()] == [ana, ben]
    line.add(ben_too)
    assert [line.pop(), line.pop()] == [ana_too, ben_too]
