from hypothesis import given
from hypothesis import strategies as st

from avatarforge.tracker.queue.fair_queue import FairQueue
from tests.factories import a_job


def ids_of(queue: FairQueue) -> list[str]:
    popped = []
    while (job := queue.pop()) is not None:
        popped.append(job.job_id)
    return popped


def test_jobs_of_one_customer_go_oldest_first() -> None:
    jobs = [a_job() for _ in range(5)]
    queue = FairQueue()
    for job in reversed(jobs):
        queue.add(job)
    assert ids_of(queue) == [job.job_id for job in jobs]


def test_customers_take_turns() -> None:
    queue = FairQueue()
    many = [a_job(customer_id="many") for _ in range(100)]
    for job in many:
        queue.add(job)
    single = a_job(customer_id="single")
    queue.add(single)
    assert ids_of(queue)[:3] == [many[0].job_id, single.job_id, many[1].job_id]


def test_a_higher_priority_goes_first() -> None:
    queue = FairQueue()
    usual, urgent, idle = a_job(), a_job(priority=5), a_job(priority=-5)
    for job in (idle, usual, urgent):
        queue.add(job)
    assert ids_of(queue) == [urgent.job_id, usual.job_id, idle.job_id]


def test_a_job_that_left_the_line_costs_its_customer_no_turn() -> None:
    queue = FairQueue()
    gone, stays = a_job(customer_id="a"), a_job(customer_id="a")
    other = a_job(customer_id="b")
    for job in (gone, stays, other):
        queue.add(job)
    assert queue.remove(gone.job_id) == gone
    assert ids_of(queue) == [stays.job_id, other.job_id]


def test_a_job_stands_in_line_once() -> None:
    queue = FairQueue()
    job = a_job()
    queue.add(job)
    queue.add(job)
    assert ids_of(queue) == [job.job_id]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.booleans(), st.booleans()), max_size=40)
)
def test_the_told_order_is_the_order_in_which_they_go(moves: list[tuple[str, int, bool, bool]]) -> None:
    queue = FairQueue()
    inside: set[str] = set()
    for customer_id, priority, removed, popped in moves:
        job = a_job(customer_id=customer_id, priority=priority)
        queue.add(job)
        inside.add(job.job_id)
        if removed:
            queue.remove(job.job_id)
            inside.discard(job.job_id)
        if popped and (gone := queue.pop()) is not None:
            inside.discard(gone.job_id)
    assert len(queue) == len(inside)
    told = queue.list_next(100)
    assert list(told) == ids_of(queue)
    assert set(told) == inside


def test_a_job_that_does_not_fit_keeps_its_place_and_blocks_nobody() -> None:
    queue = FairQueue()
    first, second, other = a_job(), a_job(), a_job(customer_id="bo")
    for job in (first, second, other):
        queue.add(job)
    assert queue.pop(lambda job: job is not first) is second
    assert queue.pop(lambda job: job is not first) is other
    assert queue.pop(lambda job: job is not first) is None
    assert queue.pop() is first
    assert queue.pop() is None


def test_a_job_that_was_taken_out_of_turn_can_come_back() -> None:
    queue = FairQueue()
    first, second = a_job(), a_job()
    for job in (first, second):
        queue.add(job)
    assert queue.pop(lambda job: job is second) is second
    queue.add(second)
    assert queue.list_next(9) == (first.job_id, second.job_id)
    assert ids_of(queue) == [first.job_id, second.job_id]


def test_fitting_jobs_of_a_lower_priority_go_when_none_above_fits() -> None:
    queue = FairQueue()
    urgent, usual = a_job(priority=5), a_job()
    for job in (urgent, usual):
        queue.add(job)
    assert queue.has(lambda job: job is usual)
    assert queue.pop(lambda job: job is not urgent) is usual
    assert not queue.has(lambda job: job is not urgent)
    assert ids_of(queue) == [urgent.job_id]


def test_a_customer_who_sends_one_job_after_the_other_has_no_two_turns_while_others_wait() -> None:
    queue = FairQueue()
    ana, ana_too, ben, ben_too = a_job(), a_job(), a_job(customer_id="ben"), a_job(customer_id="ben")
    for job in (ana, ana_too, ben):
        queue.add(job)
    assert [queue.pop(), queue.pop()] == [ana, ben]
    queue.add(ben_too)
    assert [queue.pop(), queue.pop()] == [ana_too, ben_too]
