"""Jobs that wait, to be followed: with no generation they move only when they are cancelled."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks import load
from benchmarks.photos import noisy_jpeg

CLIENTS = 8


def submit(url: str, customers: Sequence[str]) -> list[str]:
    """One job for each customer; returns their ids in the same order."""
    photo = noisy_jpeg(side=64)
    requests = [load.upload(f"/customers/{customer}", photo, "image/jpeg") for customer in customers]
    replies = load.send(url, iter(requests), CLIENTS).expect(202).replies
    job_ids = {reply.json()["customerId"]: reply.json()["jobId"] for reply in replies}
    return [job_ids[customer] for customer in customers]


def cancel(url: str, jobs: Sequence[tuple[str, str]], *, a_second: float, patience: float = 0) -> float:
    """Cancel jobs (customer's id, job's id) at a steady rate; returns the rate that it came to.

    A call that is answered 503 is repeated for `patience` seconds.
    """
    begun = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as threads:
        calls = []
        for number, (customer_id, job_id) in enumerate(jobs):
            time.sleep(max(0.0, begun + number / a_second - time.monotonic()))
            calls.append(threads.submit(_cancel, url, customer_id, job_id, patience))
        for call in calls:
            call.result()
    return len(jobs) / max(time.monotonic() - begun, 1 / a_second)


def _cancel(url: str, customer_id: str, job_id: str, patience: float) -> None:
    request = (
        f"POST /customers/{customer_id}/photos/{job_id}/cancel HTTP/1.1\r\n"
        f"Host: localhost\r\nContent-Length: 0\r\n\r\n"
    )
    deadline = time.monotonic() + patience
    while True:
        done = load.send(url, iter([request.encode()]), 1)
        if done.replies[0].status != 503 or time.monotonic() > deadline:
            done.expect(200)
            return
        time.sleep(0.2)
