"""Every metric that `/metrics` tells. Label values are few: no ids of jobs, customers or replicas.

Counters and gauges follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/): base units,
and `_total` for what only rises. What Ray and Serve tell of themselves is theirs.
"""

from avatarforge.telemetry.figures import LONG_SECONDS, Counter, Gauge, Histogram, Metric

# --- jobs ---------------------------------------------------------------------------------------------------

JOB_EVENTS = Counter(
    name="avatarforge_job_events_total",
    help="Changes of jobs, by what happened: the same words as in the event log and in log lines.",
    labels=("kind",),
    scope="shard",
)
JOBS_ENDED = Counter(
    name="avatarforge_jobs_ended_total",
    help="Jobs that came to their end, by state and by the error's code (empty unless FAILED).",
    labels=("status", "code"),
    scope="shard",
)
JOBS = Gauge(name="avatarforge_jobs", help="Unfinished jobs by state.", labels=("status",), scope="shard")
JOB_WAIT = Histogram(
    name="avatarforge_job_wait_seconds",
    help="From a job's acceptance to its first start.",
    scope="shard",
    bounds=LONG_SECONDS,
)
JOB_SECONDS = Histogram(
    name="avatarforge_job_seconds",
    help="From a job's acceptance to its end, by state.",
    labels=("status",),
    scope="shard",
    bounds=LONG_SECONDS,
)
JOB_STAGES = Histogram(
    name="avatarforge_job_stage_seconds",
    help="Where the time of jobs that are DONE went, by stage of the generation.",
    labels=("stage",),
    scope="shard",
)
BACKLOG_JOBS = Gauge(name="avatarforge_backlog_jobs", help="Jobs that wait for a slot.", scope="shard")
BACKLOG_SECONDS = Gauge(
    name="avatarforge_backlog_seconds",
    help="Seconds that one replica would need for all that waits and runs; absent while none was measured.",
    scope="shard",
)
LINE_SECONDS = Gauge(
    name="avatarforge_line_seconds",
    help="Seconds until a job that came now would be done; absent while nothing was measured.",
    scope="shard",
)
OLDEST_WAITING = Gauge(
    name="avatarforge_oldest_waiting_seconds",
    help="Age of the oldest job that waits; 0 while none does.",
    scope="shard",
)

# --- backends -----------------------------------------------------------------------------------------------

ATTEMPTS_ENDED = Counter(
    name="avatarforge_attempts_ended_total",
    help="Attempts by backend and outcome: `finished`, `cancelled`, or the code of the error.",
    labels=("backend", "outcome"),
    scope="shard",
)
ATTEMPTS_RUNNING = Gauge(
    name="avatarforge_attempts_running",
    help="Attempts under way, by backend.",
    labels=("backend",),
    scope="shard",
)
BACKEND_AVAILABLE = Gauge(
    name="avatarforge_backend_available",
    help="1 while the backend is asked for slots, 0 while it is left alone (its circuit is open).",
    labels=("backend",),
    scope="shard",
)
BACKEND_WITHOUT_SLOT = Gauge(
    name="avatarforge_backend_without_slot_seconds",
    help="How long the backend has been asked for a slot while it runs nothing.",
    labels=("backend",),
    scope="shard",
)

# --- tracker ------------------------------------------------------------------------------------------------

TRACKER_UP = Gauge(
    name="avatarforge_tracker_up", help="1 when the shard's tracker answered this scrape.", scope="shard"
)
TRACKER_EPOCH = Gauge(
    name="avatarforge_tracker_epoch", help="Rises when the shard's tracker starts.", scope="shard"
)
COMMIT_CHANGES = Histogram(
    name="avatarforge_commit_changes",
    help="Changes of one group commit.",
    scope="shard",
    bounds=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
COMMIT_SECONDS = Histogram(
    name="avatarforge_commit_seconds", help="Duration of one group commit.", scope="shard"
)
DATABASE_AWAY = Gauge(
    name="avatarforge_database_away",
    help="1 while the database does not answer the tracker, whose changes then wait.",
    scope="shard",
)
FEED_ANSWERS = Counter(
    name="avatarforge_feed_answers_total",
    help="Answers to ingress replicas that follow the tracker.",
    scope="shard",
)

# --- webhooks -----------------------------------------------------------------------------------------------

WEBHOOK_CALLS = Counter(
    name="avatarforge_webhook_calls_total",
    help="Calls of receivers by outcome: `delivered`, `failed` (to be tried again), `given_up`.",
    labels=("outcome",),
    scope="shard",
)
WEBHOOK_SECONDS = Histogram(
    name="avatarforge_webhook_call_seconds", help="Duration of calls of receivers.", scope="shard"
)
WEBHOOKS_WAITING = Gauge(
    name="avatarforge_webhooks_waiting",
    help="Deliveries that wait for their next call, whenever that is due.",
    scope="shard",
)
WEBHOOKS_RUNNING = Gauge(
    name="avatarforge_webhooks_running", help="Calls of receivers under way.", scope="shard"
)

# --- ingress ------------------------------------------------------------------------------------------------

INGRESS_REPLICAS = Gauge(
    name="avatarforge_ingress_replicas", help="Ingress replicas that have told their figures lately."
)
HTTP_REQUESTS = Counter(
    name="avatarforge_http_requests_total",
    help="HTTP requests by method, route and status.",
    labels=("method", "route", "status"),
)
GRPC_CALLS = Counter(
    name="avatarforge_grpc_calls_total",
    help="gRPC calls by method and the name of their status.",
    labels=("method", "status"),
)
REFUSALS = Counter(
    name="avatarforge_refusals_total",
    help="Calls that were answered with an error, on any channel, by its code.",
    labels=("code",),
)
ACCEPT_SECONDS = Histogram(
    name="avatarforge_accept_seconds",
    help="From a photo that was received to its durable job.",
)
ACCEPTED_BYTES = Counter(
    name="avatarforge_accepted_bytes_total", help="Bytes of originals that were accepted."
)
SUBSCRIBERS = Gauge(
    name="avatarforge_subscribers", help="Open streams and long polls, by channel.", labels=("channel",)
)
FEED_LAG = Gauge(
    name="avatarforge_feed_lag_seconds",
    help="Seconds since the most silent tracker answered, at the ingress replica that is furthest behind.",
    merged="max",
)

# --- replicas -----------------------------------------------------------------------------------------------

REPLICAS = Gauge(
    name="avatarforge_replicas",
    help="Replicas that have told of themselves lately, by backend, model (empty before any) and state.",
    labels=("backend", "model", "state"),
)
WISHES_FAILED = Gauge(
    name="avatarforge_model_wishes_failed",
    help="Replicas that could not load the model that they should serve: an older one serves, or none.",
)
CIRCUITS_OPEN = Gauge(
    name="avatarforge_remote_circuits_open",
    help="Replicas of the remote backend that leave its server alone.",
)
STEPS = Counter(
    name="avatarforge_steps_total",
    help="Denoising steps by model and number of images in the batch.",
    labels=("model", "images"),
)
STEP_IMAGES = Counter(
    name="avatarforge_step_images_total",
    help="Images in those steps: by the number of steps it is the mean size of a batch.",
    labels=("model",),
)
STEP_SECONDS = Gauge(
    name="avatarforge_step_seconds",
    help="Duration of a step at the slowest replica, by model and number of images (1, 2, 4, 8 and so on).",
    labels=("model", "images"),
    merged="max",
)
PICTURES = Counter(
    name="avatarforge_pictures_total", help="Pictures that were finished, by model.", labels=("model",)
)
DEVICE_BUSY = Counter(
    name="avatarforge_device_busy_seconds_total",
    help="Seconds that went into pictures, over all replicas of a model.",
    labels=("model",),
)
DEVICE_MEMORY = Gauge(
    name="avatarforge_device_memory_bytes",
    help="Memory that replicas take on GPUs, by model.",
    labels=("model",),
)
IMAGES = Gauge(
    name="avatarforge_images",
    help="Images in replicas, by model and state: `active` ones are denoised, `waiting` ones come next.",
    labels=("model", "state"),
)

# --- what several kinds of processes call -------------------------------------------------------------------

DATABASE_CALLS = Histogram(
    name="avatarforge_database_call_seconds",
    help="Transactions by component, kind (`read`, `write`) and outcome (`ok`, `unavailable`, `error`). "
    "The trackers' have their shard.",
    labels=("component", "kind", "outcome"),
    scope="shard",
)
STORAGE_CALLS = Histogram(
    name="avatarforge_storage_call_seconds",
    help="Calls of object storage by component, operation and outcome (`ok`, `absent`, `unavailable`, "
    "`error`). The trackers' have their shard.",
    labels=("component", "operation", "outcome"),
    scope="shard",
)

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME = {metric.name: metric for metric in ALL}
