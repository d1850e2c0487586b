"""What trackers tell the autoscaler."""

TOLD_TARGETS = {
    "target_wait_seconds": 30,
    "min_replicas": 0,
    "max_replicas": 8,
    "cold_start_seconds": 60,
    "scale_down_seconds": 120,
}


def told(
    waiting: int, running: int = 0, accepted: int = 0, finished: int = 0, backlog: float | None = None
) -> dict[str, object]:
    """A tracker's answer, with jobs of one image each."""
    return {
        "unfinished": waiting + running,
        "waiting": waiting,
        "localRunning": running,
        "backlogSeconds": backlog,
        "accepted": accepted,
        "localFinished": finished,
        "scaling": TOLD_TARGETS,
    }
