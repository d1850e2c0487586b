"""The record: jobs, their photos, event log and webhook deliveries in MariaDB or SQLite, under one schema."""

from avatarforge.persistence.api_keys import ApiKeyRepository
from avatarforge.persistence.database import open_engine
from avatarforge.persistence.deletions import DeletionRepository
from avatarforge.persistence.deliveries import DeliveryRepository
from avatarforge.persistence.jobs import JobRepository

__all__ = ["ApiKeyRepository", "DeletionRepository", "DeliveryRepository", "JobRepository", "open_engine"]
