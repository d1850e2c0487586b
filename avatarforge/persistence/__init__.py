"""The record: jobs, their photos, event log and webhook deliveries in MariaDB or SQLite, under one schema."""

from avatarforge.persistence.api_keys import ApiKeyRecords
from avatarforge.persistence.database import open_engine
from avatarforge.persistence.deletions import DeletionRecords
from avatarforge.persistence.deliveries import DeliveryRecords
from avatarforge.persistence.jobs import JobRecords

__all__ = ["ApiKeyRecords", "DeletionRecords", "DeliveryRecords", "JobRecords", "open_engine"]
