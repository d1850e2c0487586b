"""Every metric of `/metrics`. Label values are few: no ids of jobs, customers or replicas.

Counters and gauges follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/): base units,
and `_total` for what only rises. Ray and Serve add their own.
"""

from avatarforge.telemetry.registry import LONG_SECONDS, Counter, Gauge, Histogram, Metric

# --- jobs ---------------------------------------------------------------------------------------------------

JOB_EVENTS = Counter(
    "avatarforge_job_events_total",
    "Changes of jobs, by what happened: the same words as in the event log and in log lines.",
    ("kind",),
    scope="shard",
)
JOBS_ENDED = Counter(
    "avatarforge_jobs_ended_total",
    "Jobs that came to their end, by state and by the error's code (empty unless FAILED).",
    ("status", "code"),
    scope="shard",
)
JOBS = Gauge("avatarforge_jobs", "Unfinished jobs by state.", ("status",), scope="shard")
JOB_WAIT = Histogram(
    "avatarforge_job_wait_seconds",
    "From a job's acceptance to its first start.",
    scope="shard",
    bounds=LONG_SECONDS,
)
JOB_SECONDS = Histogram(
    "avatarforge_job_seconds",
    "From a job's acceptance to its end, by state.",
    ("status",),
    scope="shard",
    bounds=LONG_SECONDS,
)
JOB_STAGES = Histogram(
    "avatarforge_job_stage_seconds",
    "Where the time of jobs that are DONE went, by stage of the generation.",
    ("stage",),
    scope="shard",
)
BACKLOG_JOBS = Gauge("avatarforge_backlog_jobs", "Jobs that wait for a slot.", scope="shard")
BACKLOG_SECONDS = Gauge(
    "avatarforge_backlog_seconds",
    "Seconds that one replica would need for all that waits and runs; absent while none was measured.",
    scope="shard",
)
ESTIMATED_WAIT = Gauge(
    "avatarforge_estimated_wait_seconds",
    "Seconds until a job that came now would be done; absent while nothing was measured.",
    scope="shard",
)
OLDEST_WAITING = Gauge(
    "avatarforge_oldest_waiting_seconds",
    "Age of the oldest job that waits; 0 while none does.",
    scope="shard",
)

# --- backends -----------------------------------------------------------------------------------------------

ATTEMPTS_ENDED = Counter(
    "avatarforge_attempts_ended_total",
    "Attempts by backend and outcome: `finished`, `cancelled`, or the code of the error.",
    ("backend", "outcome"),
    scope="shard",
)
ATTEMPTS_RUNNING = Gauge(
    "avatarforge_attempts_running", "Attempts under way, by backend.", ("backend",), scope="shard"
)
BACKEND_AVAILABLE = Gauge(
    "avatarforge_backend_available",
    "1 while the backend is asked for slots, 0 while it is left alone (its circuit is open).",
    ("backend",),
    scope="shard",
)
BACKEND_STARVED = Gauge(
    "avatarforge_backend_starved_seconds",
    "How long the backend has been asked for a slot while it runs nothing.",
    ("backend",),
    scope="shard",
)

# --- tracker ------------------------------------------------------------------------------------------------

TRACKER_UP = Gauge(
    "avatarforge_tracker_up", "1 when the shard's tracker answered this scrape.", scope="shard"
)
TRACKER_EPOCH = Gauge("avatarforge_tracker_epoch", "Rises when the shard's tracker starts.", scope="shard")
COMMIT_CHANGES = Histogram(
    "avatarforge_commit_changes",
    "Changes of one group commit.",
    scope="shard",
    bounds=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
COMMIT_SECONDS = Histogram("avatarforge_commit_seconds", "Duration of one group commit.", scope="shard")
DATABASE_UP = Gauge(
    "avatarforge_database_up",
    "0 while the database does not answer the tracker, whose changes then wait.",
    scope="shard",
)
TRACKER_IDLE = Gauge(
    "avatarforge_tracker_idle",
    "1 while the tracker leaves its shard to another cluster, or has another number of shards than it.",
    scope="shard",
)
DATABASE_DEFECT = Gauge(
    "avatarforge_database_defect",
    "The number of the database's error that no waiting heals; 0 while there is none.",
    scope="shard",
    merge_by="max",
)
FEED_READS = Counter(
    "avatarforge_feed_reads_total", "Answers to ingress replicas that follow the tracker.", scope="shard"
)

# --- webhooks -----------------------------------------------------------------------------------------------

WEBHOOK_ATTEMPTS = Counter(
    "avatarforge_webhook_attempts_total",
    "Calls of receivers by outcome: `delivered`, `failed` (to be tried again), `given_up`.",
    ("outcome",),
    scope="shard",
)
WEBHOOK_SECONDS = Histogram(
    "avatarforge_webhook_call_seconds", "Duration of calls of receivers.", scope="shard"
)
WEBHOOKS_WAITING = Gauge(
    "avatarforge_webhooks_waiting",
    "Deliveries that wait for their next call, whenever that is due.",
    scope="shard",
)
WEBHOOKS_RUNNING = Gauge("avatarforge_webhooks_running", "Calls of receivers under way.", scope="shard")

# --- ingress ------------------------------------------------------------------------------------------------

INGRESS_REPLICAS = Gauge(
    "avatarforge_ingress_replicas", "Ingress replicas that have reported their metrics lately."
)
HTTP_REQUESTS = Counter(
    "avatarforge_http_requests_total",
    "HTTP requests by method, route and status.",
    ("method", "route", "status"),
)
GRPC_CALLS = Counter(
    "avatarforge_grpc_calls_total", "gRPC calls by method and the name of their status.", ("method", "status")
)
ERRORS = Counter(
    "avatarforge_errors_total",
    "Calls that were answered with an error, on any channel, by its code.",
    ("code",),
)
UPLOAD_ACCEPT_DURATION = Histogram(
    "avatarforge_upload_accept_duration_seconds", "From a photo that was received to its durable job."
)
ACCEPTED_BYTES = Counter("avatarforge_accepted_bytes_total", "Bytes of originals that were accepted.")
SUBSCRIBERS = Gauge("avatarforge_subscribers", "Open streams and long polls, by channel.", ("channel",))
FEED_LAG = Gauge(
    "avatarforge_feed_lag_seconds",
    "Seconds since the most silent tracker answered, at the ingress replica that is furthest behind.",
    merge_by="max",
)

# --- replicas -----------------------------------------------------------------------------------------------

REPLICAS = Gauge(
    "avatarforge_replicas",
    "Replicas that have told of themselves lately, by backend, model (empty before any) and state.",
    ("backend", "model", "state"),
)
MODEL_LOAD_FAILURES = Gauge(
    "avatarforge_model_load_failures",
    "Replicas that could not load the model that they should serve, so that an older one serves or none.",
)
USER_CONFIG_FAULTS = Gauge(
    "avatarforge_user_config_faults",
    "Replicas whose `user_config` has names that nothing reads or impossible values. These are left out.",
)
COMPILE_FAILURES = Gauge(
    "avatarforge_model_compile_failures",
    "Replicas whose model runs as it is, more slowly, since torch could not compile it.",
)
CIRCUITS_OPEN = Gauge(
    "avatarforge_remote_circuits_open", "Replicas of the remote backend that leave its server alone."
)
STEPS = Counter(
    "avatarforge_steps_total",
    "Denoising steps by model and number of images in the batch.",
    ("model", "images"),
)
STEP_IMAGES = Counter(
    "avatarforge_step_images_total",
    "Images in those steps: by the number of steps it is the mean size of a batch.",
    ("model",),
)
STEP_SECONDS = Gauge(
    "avatarforge_step_seconds",
    "Duration of a step at the slowest replica, by model and number of images (1, 2, 4, 8 and so on).",
    ("model", "images"),
    merge_by="max",
)
IMAGES_GENERATED = Counter(
    "avatarforge_images_generated_total", "Images that were finished, by model.", ("model",)
)
DEVICE_BUSY = Counter(
    "avatarforge_device_busy_seconds_total",
    "Seconds spent on images, over all replicas of a model.",
    ("model",),
)
DEVICE_MEMORY = Gauge(
    "avatarforge_device_memory_bytes", "Memory that replicas take on GPUs, by model.", ("model",)
)
IMAGES = Gauge(
    "avatarforge_images",
    "Images in replicas, by model and state: `active` ones are denoised, `waiting` ones come next.",
    ("model", "state"),
)

# --- what several kinds of processes call -------------------------------------------------------------------

DATABASE_CALLS = Histogram(
    "avatarforge_database_call_seconds",
    "Transactions by component, kind (`read`, `write`) and outcome (`ok`, `unavailable`, `error`). "
    "The trackers' have their shard.",
    ("component", "kind", "outcome"),
    scope="shard",
)
STORAGE_CALLS = Histogram(
    "avatarforge_storage_call_seconds",
    "Calls of object storage by component, operation and outcome (`ok`, `absent`, `unavailable`, "
    "`error`). The trackers' have their shard.",
    ("component", "operation", "outcome"),
    scope="shard",
)

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME = {metric.name: metric for metric in ALL}
