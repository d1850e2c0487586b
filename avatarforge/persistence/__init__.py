"""The record: jobs, their photos and their event log in MariaDB or SQLite, under one schema."""

from avatarforge.persistence.database import open_engine
from avatarforge.persistence.jobs import JobRecords

__all__ = ["JobRecords", "open_engine"]
