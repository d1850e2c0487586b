"""The feed where the database is ahead of it."""

from avatarforge.domain.changes import LoggedChange
from avatarforge.domain.generations import GenerationProgress
from avatarforge.tracker.availability import DatabaseOutage, StartupGate
from avatarforge.tracker.eta import Forecast
from avatarforge.tracker.feed import Feed, FeedCursor
from tests.jobs import a_job, submission


async def test_a_subscriber_that_was_told_from_the_database_first_is_told_nothing_twice() -> None:
    """The log's third entry is committed, and the feed has not heard of it."""
    changes = [submission(a_job()).with_seq(seq) for seq in (1, 2, 3)]

    async def load(seq: int) -> list[LoggedChange]:
        return [change.to_logged_change() for change in changes if change.event.seq > seq]

    gate = StartupGate(1, DatabaseOutage(0))
    gate.open()
    feed = Feed(gate, 1, load_changes=load, jobs=list, forecast=Forecast, reports=lambda: ())
    feed.start_after("tracker", 0)
    feed.on_change(changes[0])
    feed.on_change(changes[1])

    first = await feed.read(FeedCursor(tracker="tracker"), 0)
    feed.on_progress("another job", GenerationProgress(step=1, total_steps=2))
    second = await feed.read(first.cursor, 0)
    feed.on_change(changes[2])
    third = await feed.read(second.cursor, 0)

    told = [change.event.seq for batch in (first, second, third) for change in batch.changes]
    assert told == [1, 2, 3]
