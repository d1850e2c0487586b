"""The record: jobs, their photos, event log and webhook deliveries in MariaDB or SQLite, under one schema."""

from avatarforge.persistence.database import open_engine
from avatarforge.persistence.deletions import DeletionRecords
from avatarforge.persistence.deliveries import DeliveryRecords
from avatarforge.persistence.jobs import JobRecords

__all__ = ["DeletionRecords", "DeliveryRecords", "JobRecords", "open_engine"]
