"""The feed where the database is ahead of it."""

from avatarforge.domain.changes import LoggedChange
from avatarforge.domain.generations import GenerationProgress
from avatarforge.tracker.estimates import Forecast
from avatarforge.tracker.feed import Feed, FeedCursor
from tests.jobs import a_job, submission


async def test_a_subscriber_that_was_told_from_the_database_first_is_told_nothing_twice() -> None:
    """The log's third entry is committed, and the feed has not heard of it."""
    changes = [submission(a_job()).numbered(seq) for seq in (1, 2, 3)]

    async def load(seq: int) -> list[LoggedChange]:
        return [change.logged() for change in changes if change.event.seq > seq]

    feed = Feed("tracker", 0, recent=1, load_changes=load, jobs=list, forecast=Forecast, reports=lambda: ())
    feed.changed(changes[0])
    feed.changed(changes[1])

    first = await feed.read(FeedCursor(tracker="tracker"), 0)
    feed.progressed("another job", GenerationProgress(step=1, total_steps=2))
    second = await feed.read(first.cursor, 0)
    feed.changed(changes[2])
    third = await feed.read(second.cursor, 0)

    told = [change.event.seq for batch in (first, second, third) for change in batch.changes]
    assert told == [1, 2, 3]
