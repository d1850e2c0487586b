from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from avatarforge.domain.jobs import GenerationParameters, ProfilePhotoJob
from avatarforge.tracker.queue.fair_queue import FairQueue
from tests.factories import a_job


def of_images(count: int, customer_id: str = "ana", priority: int = 0) -> ProfilePhotoJob:
    parameters = GenerationParameters(seed=1, variants=count)
    return a_job(customer_id=customer_id, priority=priority, parameters=parameters)


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
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.integers(-1, 1),
            st.sampled_from((1, 1, 2, 5)),
            st.booleans(),
            st.sampled_from(("", "a", "ab", "abc")),
        ),
        max_size=40,
    )
)
def test_the_told_order_is_the_order_in_which_they_go(moves: list[tuple[str, int, int, bool, str]]) -> None:
    queue = FairQueue()
    inside: set[str] = set()
    for customer_id, priority, images, removed, fitting in moves:
        job = of_images(images, customer_id, priority)
        queue.add(job)
        inside.add(job.job_id)
        if removed:
            queue.remove(job.job_id)
            inside.discard(job.job_id)
        if (gone := queue.pop(lambda job, fitting=fitting: job.customer_id in fitting)) is not None:  # type: ignore[misc]  # bound at once
            inside.discard(gone.job_id)
    assert len(queue) == len(inside)
    told = queue.list_next(1000)
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


def test_a_job_of_several_images_takes_as_many_turns() -> None:
    queue = FairQueue()
    eight, next_eight = of_images(8), of_images(8)
    others = [a_job(customer_id="ben") for _ in range(10)]
    for job in (eight, next_eight, *others):
        queue.add(job)
    assert queue.image_count == 26
    # In eight rounds each customer has eight images.
    assert ids_of(queue) == [job.job_id for job in (eight, *others[:8], next_eight, *others[8:])]
    assert queue.image_count == 0


def test_nobody_waits_for_the_turns_of_a_customer_who_is_alone() -> None:
    queue = FairQueue()
    jobs = [of_images(8) for _ in range(3)]
    for job in jobs:
        queue.add(job)
    assert ids_of(queue) == [job.job_id for job in jobs]


def test_a_customer_who_left_with_turns_to_come_waits_for_them() -> None:
    queue = FairQueue()
    others = [a_job(customer_id="ben") for _ in range(4)]
    for job in (of_images(3), *others):
        queue.add(job)
    queue.pop()
    again = a_job()
    queue.add(again)
    assert ids_of(queue) == [job.job_id for job in (*others[:3], again, others[3])]


def test_a_job_that_nobody_takes_holds_up_no_round() -> None:
    queue = FairQueue()
    stuck = [a_job(customer_id="ana") for _ in range(3)]
    bens = [of_images(8, "ben"), *(a_job(customer_id="ben") for _ in range(3))]
    for job in (*stuck, *bens, *(a_job(customer_id="eve") for _ in range(20))):
        queue.add(job)
    order = [job.customer_id for _ in range(16) if (job := queue.pop(lambda job: job not in stuck))]
    assert order == ["ben", *["eve"] * 8, "ben", "eve", "ben", "eve", "ben", "eve", "eve"]
    # The turns that it did not take are not made up for.
    told = queue.list_next(1000)
    rest = [queue.pop() for _ in range(6)]
    assert [job.customer_id for job in rest if job] == ["ana", "eve"] * 3
    assert told[:6] == tuple(job.job_id for job in rest if job)


def test_so_many_jobs_are_listed_that_they_wait_for_the_images_asked_for() -> None:
    queue = FairQueue()
    jobs = [of_images(4) for _ in range(5)]
    for job in jobs:
        queue.add(job)
    for limit, listed in ((0, 0), (1, 1), (4, 1), (5, 2), (100, 5)):
        assert queue.list_next(limit) == tuple(job.job_id for job in jobs[:listed])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 8)), min_size=1, max_size=40))
def test_while_customers_wait_they_get_images_alike(jobs: list[tuple[str, int]]) -> None:
    queue = FairQueue()
    for customer_id, images in jobs:
        queue.add(of_images(images, customer_id))
    waiting = Counter(customer_id for customer_id, _ in jobs)
    had: Counter[str] = Counter()
    while (job := queue.pop()) is not None:
        # Whoever is picked had no more than any other who waits, but for that one's last job.
        assert all(had[job.customer_id] < had[other] + 8 + 1 for other in waiting)
        had[job.customer_id] += job.parameters.variants
        waiting[job.customer_id] -= 1
        waiting = +waiting
