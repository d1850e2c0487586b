"""A seeded simulation of the tracker: simulated time, database, storage, replicas and processes that die."""
