"""Jobs as they change: the cache of jobs, events and streams."""
