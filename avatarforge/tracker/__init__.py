"""The JobTracker: live state of jobs, their order, dispatch, the feed, and the actor around it."""
