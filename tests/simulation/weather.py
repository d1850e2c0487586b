"""How bad a simulation's world is: drawn from its seed."""

from dataclasses import dataclass
from random import Random

GENERATION_FAULTS = (
    "dies",
    "ends early",
    "falls silent",
    "is cancelled",
    "is slow",
    "refuses",
    "gives back",
    "is away",
    "lingers",
)
"""What may become of a generation that does not go well."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """Shares are of all calls, times in seconds."""

    seconds: float
    """How long faults go on and clients act."""
    shards: int
    ingresses: int
    customers: int
    jobs: int
    replicas: int
    slots: int
    """Of each replica."""
    remote: bool
    """Whether a server that is not ours helps out."""
    bad_calls: float
    """Calls of the database that go wrong in one of the ways there are."""
    slow_calls: float
    """Calls of the database, and visits to threads, that take long."""
    bad_storage: float
    bad_generations: float
    usual_fault: str
    """What becomes of half of them."""
    bad_reservations: float
    outages: int
    storage_outages: int
    kills: int
    """Trackers that are killed and started again."""
    twins: int
    """Trackers that are started while the old one goes on."""
    rivals: int
    """Clusters that are started beside the first, on the same database, and end after a while."""
    ingress_kills: int
    replica_kills: int
    drains: int
    clock_jumps: int
    far_jumps: int
    """Forty days ahead, for a minute."""
    commit_timeout_seconds: float
    lease_seconds: float
    patience: float
    max_commit_batch: int
    recent_events: int

    @classmethod
    def drawn(cls, chance: Random) -> "Weather":
        """Calm in some respects, wild in others, so that each kind of fault also comes alone."""

        def some(most: int) -> int:
            return chance.choice((0, 0, chance.randint(1, most)))

        def share(most: float) -> float:
            return chance.choice((0.0, 0.0, chance.uniform(0, most)))

        return cls(
            seconds=chance.uniform(10, 60),
            shards=chance.choice((1, 1, 2)),
            ingresses=chance.randint(1, 2),
            customers=chance.randint(1, 4),
            jobs=chance.randint(1, 16),
            replicas=chance.randint(1, 3),
            slots=chance.randint(1, 3),
            remote=chance.random() < 0.25,
            bad_calls=share(0.25),
            slow_calls=share(0.1),
            bad_storage=share(0.3),
            bad_generations=share(0.6),
            usual_fault=chance.choice(GENERATION_FAULTS),
            bad_reservations=share(0.2),
            outages=some(3),
            storage_outages=some(2),
            kills=some(3),
            twins=some(2),
            rivals=some(2),
            ingress_kills=some(2),
            replica_kills=some(4),
            drains=some(2),
            clock_jumps=some(4),
            far_jumps=some(2),
            commit_timeout_seconds=chance.choice((0.5, 2.0, 5.0)),
            lease_seconds=chance.choice((5.0, 30.0)),
            patience=chance.choice((3.0, 15.0)),
            max_commit_batch=chance.choice((1, 3, 256)),
            recent_events=chance.choice((2, 8, 10_000)),
        )
