"""Every setting, with its default and what it means.

The defaults are the embedded ones: one machine, SQLite, a folder, the CPU, the carried checkpoint.
A setting `group.name` is read from the variable `AVATARFORGE_GROUP_NAME`; `data_dir` from
`AVATARFORGE_DATA_DIR`. Variables win over what `serve_config.yaml` gives under `args`.
"""

import difflib
import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

PREFIX = "AVATARFORGE_"
FOR_CLIENTS = frozenset({f"{PREFIX}URL", f"{PREFIX}API_KEY"})
"""Variables that clients of a server read: which one, and with what key. They are no settings of a server."""

ADDRESS = r"^https?://[^/\s?#@]+(/[^\s?#]*)?$"
"""The URL of a server that is called without a password, a query or a fragment in it."""


class SettingsError(ValueError):
    """A setting is unknown or has an impossible value. The text names it and what would be right."""


class Group(BaseModel):
    """Settings that belong together. Frozen; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # Inputs may be secrets, and an error's text ends in logs.
        hide_input_in_errors=True,
    )


class HttpSettings(Group):
    host: str = "127.0.0.1"
    """Address that REST and SSE listen on."""
    port: int = Field(8000, ge=1, le=65535)
    """Port that REST and SSE listen on."""
    root_path: str = Field("", pattern=r"^((/[A-Za-z0-9._~-]+)+)?$")
    """What a proxy in front has before our paths, such as `/avatars`: addresses in answers, webhooks and the
    studio begin with it. Requests may come with it or without it."""
    trusted_proxies: str = ""
    """Addresses and networks of proxies whose `X-Forwarded-Prefix` counts in place of `root_path`, separated
    by commas; by default none."""
    sdapi: bool = False
    """Answer AUTOMATIC1111's API under `/sdapi/v1` too, so that its clients can use this service. Where keys
    are required they send one as the password of HTTP basic authentication."""
    terms_url: str = Field("", pattern=r"^(https?://\S+)?$")
    """Address of your terms, an `http` or `https` URL, which the studio names where a photo is chosen."""

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, text: str) -> str:
        for network in _split(text):
            ipaddress.ip_network(network)
        return text

    @property
    def proxies(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The trusted proxies' networks, one by one."""
        return tuple(ipaddress.ip_network(network) for network in _split(self.trusted_proxies))

    @property
    def is_local(self) -> bool:
        """Only this machine reaches a server that listens there."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


_WEEK_SECONDS = 7 * 24 * 3600


class AccessSettings(Group):
    required: Literal["auto", "always", "never"] = "auto"
    """Whether requests need an API key. `auto`: always, unless `avatarforge up` listens on a loopback address
    only."""
    requests_per_second: float = Field(100, ge=0)
    """Requests that one key may make a second of each ingress process, in the long run; 0: any number."""
    burst: int = Field(500, ge=1)
    """Requests that one key may make at once after a silence."""
    ticket_seconds: float = Field(30, gt=0, le=3600)
    """How long a ticket for a stream may wait to be used."""
    link_secrets: SecretStr | None = None
    """Secrets that sign links to images, of 32 characters or more, several separated by commas while they are
    rotated: the first one signs, all are accepted. Without one there are no links."""
    link_seconds: int = Field(300, ge=1, le=_WEEK_SECONDS)
    """How long a link to an image works, unless whoever asks for it says; one to an original never works
    longer."""
    max_link_seconds: int = Field(_WEEK_SECONDS, ge=1, le=_WEEK_SECONDS)
    """How long a link to an avatar may work at most, whatever is asked for; at least `link_seconds`."""
    cors_origins: str = ""
    """Web sites whose pages may call this service from browsers, such as `https://shop.example`, separated by
    commas; by default none."""
    allowed_hosts: str = ""
    """Names that requests may call this service by, and their pages come from, separated by commas; by
    default any. Where `avatarforge up` asks nobody for a key, since it listens on a loopback address, by
    default this machine's: pages of other sites shall not use it through a browser here."""

    @field_validator("max_link_seconds")
    @classmethod
    def _covers_the_default(cls, seconds: int, info: ValidationInfo) -> int:
        default = info.data.get("link_seconds", 0)
        if seconds < default:
            raise ValueError(f"access.link_seconds ({default}) or more")
        return seconds

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        for origin in _split(text):
            if re.fullmatch(r"https?://[^/\s?#@*]+", origin) is None:
                raise ValueError("origins such as https://shop.example, separated by commas")
        return text

    @field_validator("link_secrets")
    @classmethod
    def _are_long(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and any(len(part) < 32 for part in _split(secret.get_secret_value())):
            raise ValueError("secrets of 32 characters or more, separated by commas")
        return secret

    @property
    def origins(self) -> tuple[str, ...]:
        return _split(self.cors_origins)

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts, one by one, written small."""
        return _split(self.allowed_hosts.lower())

    @property
    def signing_secrets(self) -> tuple[str, ...]:
        """The secrets of links, one by one."""
        return () if self.link_secrets is None else _split(self.link_secrets.get_secret_value())


class GrpcSettings(Group):
    port: int = Field(9000, ge=1, le=65535)
    """Port for gRPC."""


class DatabaseSettings(Group):
    url: SecretStr | None = None
    """SQLAlchemy URL (`mysql+pymysql://user:password@host/name`); by default SQLite in the data folder. With
    `mysql+pymysql://user@host/name?password_file=/a/file` the password is read from the file, again for each
    new connection: of several lines the first one that the server takes, as it stands, blanks included."""
    echo: bool = False
    """Log every SQL statement."""
    connect_timeout: float = Field(5, gt=0)
    """Seconds to wait for a connection."""
    read_timeout: float = Field(15, gt=0)
    """Seconds to wait for an answer, and for another process's lock on SQLite."""
    pool_size: int = Field(8, ge=1)
    """Connections kept open by a process."""


class StorageSettings(Group):
    bucket: str | None = None
    """S3 bucket for originals and avatars; by default they lie in a folder under the data folder."""
    endpoint_url: str | None = Field(None, pattern=ADDRESS)
    """URL of an S3-compatible server, such as `https://s3.example:9000`; by default Amazon's."""
    region: str = "us-east-1"
    """S3 region."""
    access_key_id: SecretStr | None = None
    """S3 access key; by default boto3's own search (environment, profile, instance role)."""
    secret_access_key: SecretStr | None = None
    """The access key's secret."""
    credentials_file: Path | None = None
    """File with the access key in its first line and its secret in the second, as they stand, in place of
    both settings. It is read again when it changes."""
    public_endpoint_url: str | None = Field(None, pattern=ADDRESS)
    """URL under which clients reach the S3 server, for signed URLs; by default `endpoint_url`."""
    signed_urls: bool = True
    """Redirect clients to signed URLs where storage has them, instead of passing the bytes through."""
    signed_url_seconds: int = Field(300, ge=1, le=604800)
    """How long a signed URL works."""
    timeout: float = Field(10, gt=0)
    """Seconds to wait for storage to connect or answer."""

    @field_validator("credentials_file")
    @classmethod
    def _in_place_of_a_key(cls, path: Path | None, others: ValidationInfo) -> Path | None:
        if path is not None and (others.data.get("access_key_id") or others.data.get("secret_access_key")):
            raise ValueError("in place of access_key_id and secret_access_key, not beside them")
        return path


class UploadSettings(Group):
    max_bytes: int = Field(20 * 1024 * 1024, ge=1)
    """Largest photo that is accepted."""
    spool_threshold_bytes: int = Field(512 * 1024, ge=0)
    """Photos up to this size are kept in memory until they are answered, at most `ingress.max_uploads` at a
    time; larger ones in a file without a name, into which they are moved while everything else waits."""
    min_side: int = Field(32, ge=1)
    """Shortest side of a photo, in pixels."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Most pixels of a photo; a file that claims more is refused before it is decoded. A JPEG may have four
    times as many, since it is then decoded at half its width and height."""
    max_decoding_pixels: int = Field(64_000_000, ge=1)
    """Pixels of photos that one ingress process decodes at a time, which take some ten bytes each; others
    wait. A larger photo is decoded alone. Most JPEGs are taken without it."""


class IngressSettings(Group):
    replicas: int = Field(1, ge=1)
    """Ingress processes."""
    max_ongoing_requests: int = Field(10_000, ge=1)
    """Requests that one ingress process has open, waiting ones included."""
    max_uploads: int = Field(128, ge=1)
    """Uploads that one ingress process reads and stores at a time; more are refused (429)."""
    max_streams: int = Field(8000, ge=1)
    """SSE and gRPC streams that one ingress process serves at a time; more are refused (429)."""
    max_streams_per_customer: int = Field(2000, ge=1)
    """Of them for one customer."""
    recent_jobs: int = Field(10_000, ge=1)
    """Finished jobs of each shard that one ingress process keeps in memory for reads."""
    recent_events: int = Field(20_000, ge=1)
    """Events of each shard that it keeps in memory for clients that resume."""
    max_wait_seconds: int = Field(60, ge=1)
    """Longest wait of one long-poll."""
    max_stream_seconds: float = Field(300, ge=1)
    """Longest life of one SSE or gRPC stream, up to a tenth of it less; clients resume by themselves."""
    heartbeat_seconds: float = Field(15, gt=0)
    """Silence on an SSE stream after which a comment is sent."""
    stream_buffer: int = Field(256, ge=1)
    """Changes that wait for one slow client of a stream before it is told to resume later."""
    num_cpus: float = Field(0.1, ge=0)
    """CPUs that Ray sets aside for an ingress process."""


class TrackerSettings(Group):
    shards: int = Field(1, ge=1)
    """JobTracker actors; each keeps the customers that its share of a stable hash names."""
    max_attempts: int = Field(3, ge=1)
    """Workers that a job may lose before it fails."""
    lease_seconds: float = Field(30, gt=0)
    """Silence of a replica after which its job is taken back."""
    max_commit_batch: int = Field(256, ge=1)
    """Most changes in one transaction."""
    commit_timeout_seconds: float = Field(5, gt=0)
    """Seconds that an upload waits for its commit before it is answered 503."""
    recent_events: int = Field(10_000, ge=1)
    """Events kept in memory for ingress replicas that ask again."""
    event_retention_days: float = Field(30, gt=0)
    """Age at which events leave the log; a client that was away for longer starts anew."""
    job_retention_days: float = Field(0, ge=0)
    """Days after its upload at which a job that has ended is erased, with original and avatar; 0: never."""
    max_backlog: int = Field(20_000, ge=1)
    """Unfinished jobs of a shard, by the images that they make; more are refused (429)."""
    max_backlog_per_customer: int = Field(5000, ge=1)
    """Unfinished jobs of one customer, by the images that they make; more are refused (429)."""
    sweep_interval_hours: float = Field(24, gt=0)
    """Hours between two searches of storage for objects that belong to no job."""
    sweep_age_hours: float = Field(48, ge=1)
    """Age that such an object must have to be removed: more than any upload or generation takes."""


class WebhookSettings(Group):
    secrets: SecretStr | None = None
    """Secrets that sign webhooks (`whsec_…`), several separated by commas while they are rotated. Without
    one no callback URL is accepted."""
    allow_private: bool = False
    """Call private, loopback and link-local addresses too."""
    ca_file: Path | None = None
    """Certificates (PEM) that receivers' are checked against, for those of one's own authority; by default
    those that Mozilla trusts."""
    timeout: float = Field(15, gt=0)
    """Seconds that a receiver may take to answer."""
    per_host: int = Field(4, ge=1)
    """Calls of one host at a time; a host that has not answered yet gets one until it does."""
    concurrency: int = Field(64, ge=2)
    """Calls at a time in all; a host gets at most half of them."""

    retry_delays_seconds: str = "5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400"
    """Delays between the calls of a delivery that fails. After the last one it is given up: after ten
    calls in 76 hours, as the Standard Webhooks specification proposes."""

    @field_validator("retry_delays_seconds")
    @classmethod
    def _are_delays(cls, text: str) -> str:
        try:
            fine = all(0 < float(part) <= 30 * 86_400 for part in text.split(","))
        except ValueError:
            fine = False
        if not fine:
            raise ValueError("numbers of seconds above 0, at most 30 days each, separated by commas")
        return text

    @property
    def retry_delays(self) -> tuple[timedelta, ...]:
        return tuple(timedelta(seconds=float(part)) for part in self.retry_delays_seconds.split(","))

    @property
    def signing_secrets(self) -> tuple[str, ...]:
        """The secrets, one by one."""
        return () if self.secrets is None else _split(self.secrets.get_secret_value())


class DiffusionSettings(Group):
    model: str = "avatar-mini"
    """Name of a manifest in `models/`."""
    models_dir: Path | None = None
    """Folder of manifests; by default the one that AvatarForge carries."""
    replicas: int = Field(1, ge=1)
    """Stable Diffusion processes."""
    num_gpus: float = Field(0, ge=0)
    """GPUs that Ray sets aside for each; 0 runs on the CPU."""
    num_cpus: float = Field(1, ge=0)
    """CPUs that Ray sets aside for each."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; `auto` takes the GPU that Ray set aside, else the CPU."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format; `auto` is bfloat16 or float16 on a GPU, float32 on a CPU."""
    threads: int = Field(0, ge=0)
    """CPU threads for torch; 0 takes one for each core."""
    niceness: int = Field(5, ge=0, le=19)
    """How far inference on a CPU steps back behind the other processes (POSIX nice)."""
    max_batch: int = Field(8, ge=1, le=64)
    """Most images that are denoised at once; the engine takes fewer where more gain nothing."""
    swap: Literal["auto", "beside", "drain"] = "auto"
    """How another checkpoint is loaded: beside the one that serves, or after that one has finished what runs
    and left; `auto` loads beside where the GPU's free memory holds both."""
    compile: Literal["none", "compile", "regional", "cudagraphs"] = "none"
    """Let torch compile the model, a matter of minutes at a first start: `regional` compiles the repeated
    blocks alone, which is done sooner; `cudagraphs` needs a GPU. What was compiled is kept in
    `TORCHINDUCTOR_CACHE_DIR`. A model that cannot be compiled serves as it is, and says why."""
    allow_pickle: bool = False
    """Read pickled weights too where a checkpoint has no safetensors; such a file may run code of its own."""
    allow_remote_code: bool = False
    """Run the code that a checkpoint brings along: only for checkpoints whose author you trust."""
    prefetch: int = Field(4, ge=0)
    """Tasks that a replica holds beyond those it generates, so that it never waits for a download."""
    stall_timeout_seconds: float = Field(120, gt=0)
    """Seconds without a step after which a device that has work counts as hung, and its replica is replaced;
    never less than 20 measured steps, and ten minutes before one was measured; half an hour
    while a model is compiled."""
    storage_retry_seconds: float = Field(600, ge=0)
    """Seconds that a replica keeps asking storage that does not answer before it gives its task back."""


class ScalingSettings(Group):
    """How many Stable Diffusion processes there are, where their number follows the backlog."""

    enabled: bool = False
    """Let the number of processes follow the backlog; otherwise it is `diffusion.replicas`."""
    target_wait_seconds: float = Field(30, gt=0)
    """Seconds within which a job that comes now should begin."""
    min_replicas: int = Field(1, ge=0)
    """Least processes. With 0 the last one goes when there is nothing to do, and the first job afterwards
    waits for a cold start."""
    max_replicas: int = Field(4, ge=1)
    """Most processes."""
    cold_start_seconds: float = Field(60, ge=0)
    """Seconds from the request for a process to its first image, a machine's start included."""
    scale_down_seconds: float = Field(300, ge=0)
    """Seconds for which a process must not have been needed before it goes."""

    @field_validator("max_replicas")
    @classmethod
    def _is_not_below_the_least(cls, most: int, others: ValidationInfo) -> int:
        if most < (least := others.data.get("min_replicas", 0)):
            raise ValueError(f"at least scaling.min_replicas, which is {least}")
        return most


class RemoteSettings(Group):
    """Another server that makes images: one that speaks AUTOMATIC1111's API."""

    url: str | None = Field(None, pattern=ADDRESS)
    """Where the server is, such as `https://host:7860`; by default there is none."""
    password: SecretStr | None = None
    """Password for HTTP basic authentication, where the server asks for it (`--api-auth`)."""
    username: str | None = Field(None, validate_default=True)
    """The name that belongs to the password."""
    ca_file: Path | None = None
    """Certificates (PEM) that the server's one is checked against; by default those that browsers trust."""
    policy: Literal["local", "remote", "local-then-remote"] = "local"
    """Who makes the images: our own replicas, the remote server, or the remote server where ours cannot
    or are too slow. Jobs with `allowRemote=false` stay with our own replicas in any case."""
    model: str | None = None
    """Checkpoint that the server is asked to use; by default the one that it has loaded."""
    sampler: str | None = None
    """Sampler that the server is asked to use, such as `Euler a`; by default its own choice."""
    concurrency: int = Field(1, ge=1, le=1000)
    """Images that the server is asked for at a time; AUTOMATIC1111 makes one after the other."""
    timeout: float = Field(600, gt=0)
    """Seconds that the server may take for one image."""
    interrupt: bool = True
    """Have the server stop when a job is cancelled. AUTOMATIC1111 stops whatever it makes at that moment:
    switch this off where others use the server too."""
    fallback_after_seconds: float = Field(10, ge=0)
    """`local-then-remote`: seconds without a local replica after which the remote server is asked."""
    overflow_after_seconds: float = Field(120, ge=0)
    """`local-then-remote`: expected seconds until the queue is done, above which the remote server
    takes from it too."""
    breaker_threshold: int = Field(3, ge=1)
    """Failures in a row after which the server is left alone (a circuit breaker)."""
    breaker_reset_seconds: float = Field(30, gt=0)
    """How long it is left alone then, before one image tries it again."""
    num_cpus: float = Field(0.1, ge=0)
    """CPUs that Ray sets aside for the process that asks the server."""

    @field_validator("username")
    @classmethod
    def _with_password(cls, username: str | None, others: ValidationInfo) -> str | None:
        if (username is None) != (others.data.get("password") is None):
            raise ValueError("username and password belong together: set both or none")
        return username

    @field_validator("policy")
    @classmethod
    def _with_server(cls, policy: str, others: ValidationInfo) -> str:
        if policy != "local" and others.data.get("url", "wrong") is None:
            raise ValueError("this policy needs the server: set remote.url (AVATARFORGE_REMOTE_URL)")
        return policy


class ProvenanceSettings(Group):
    certificate: Path | None = None
    """PEM file with the chain of certificates that signs avatars (C2PA); without one they are only marked."""
    private_key: Path | None = Field(None, validate_default=True)
    """PEM file with the private key of the chain's first certificate."""
    algorithm: Literal["es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519"] = "es256"
    """How that key signs."""
    timestamp_url: str | None = None
    """URL of a time-stamping server (RFC 3161), so that signatures outlive the certificate."""

    @field_validator("private_key")
    @classmethod
    def _with_certificate(cls, private_key: Path | None, others: ValidationInfo) -> Path | None:
        if (private_key is None) != (others.data.get("certificate") is None):
            raise ValueError("certificate and private_key belong together: set both or none")
        return private_key


class TelemetrySettings(Group):
    otlp_endpoint: str | None = Field(None, pattern=ADDRESS)
    """Where traces go: a collector that speaks OTLP over HTTP, such as `http://collector:4318`. By default
    there are none. Needs `avatarforge[tracing]`."""
    otlp_headers: SecretStr | None = None
    """Headers for the collector, such as `Authorization=Bearer …`, several separated by commas."""
    sample_ratio: float = Field(1, ge=0, le=1)
    """Share of uploads that are traced, unless the client's `traceparent` decides."""
    export_interval_seconds: float = Field(5, gt=0)
    """Seconds from one delivery of spans to the next."""
    timeout: float = Field(10, gt=0)
    """Seconds that the collector may take to answer."""

    @field_validator("otlp_headers")
    @classmethod
    def _are_headers(cls, headers: SecretStr | None) -> SecretStr | None:
        parts = [] if headers is None else headers.get_secret_value().split(",")
        if not all(re.fullmatch(r"\s*[A-Za-z0-9-]+\s*=.+", part) for part in parts):
            raise ValueError("of the form Name=value, several separated by commas")
        return headers

    def headers(self) -> dict[str, str]:
        text = "" if self.otlp_headers is None else self.otlp_headers.get_secret_value()
        pairs = (part.split("=", 1) for part in text.split(",") if part)
        return {name.strip(): value.strip() for name, value in pairs}


class LogSettings(Group):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level that is written."""
    format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""


class Settings(Group):
    """All settings."""

    data_dir: Path = Path("data")
    """Folder for all that the embedded default keeps: database, images, logs, run-time files."""
    http: HttpSettings = HttpSettings()
    grpc: GrpcSettings = GrpcSettings()
    access: AccessSettings = AccessSettings()
    database: DatabaseSettings = DatabaseSettings()
    storage: StorageSettings = StorageSettings()
    upload: UploadSettings = UploadSettings()
    ingress: IngressSettings = IngressSettings()
    tracker: TrackerSettings = TrackerSettings()
    webhook: WebhookSettings = WebhookSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    scaling: ScalingSettings = ScalingSettings()
    remote: RemoteSettings = RemoteSettings()
    provenance: ProvenanceSettings = ProvenanceSettings()
    log: LogSettings = LogSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def database_url(self) -> str:
        """The URL in force, secrets included: not for logs."""
        if self.database.url is not None:
            return self.database.url.get_secret_value()
        return f"sqlite:///{self.data_dir.resolve() / 'avatarforge.db'}"

    @property
    def storage_folder(self) -> Path:
        return self.data_dir.resolve() / "objects"

    @property
    def webhook_secret_file(self) -> Path:
        """Where `avatarforge up` keeps the secret that it makes."""
        return self.data_dir.resolve() / "webhook-secret"

    def as_arguments(self) -> dict[str, Any]:
        """Plain values, secrets in clear, from which `load_settings` makes the same settings elsewhere."""
        plain: dict[str, Any] = _reveal(self.model_dump(mode="python", exclude_defaults=True))
        return plain


def load_settings(
    arguments: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
) -> Settings:
    """Settings from `arguments` (as in `serve_config.yaml`) with the environment's laid over them.

    Raises `SettingsError` for an unknown name or an impossible value.
    """
    values = _merge(dict(arguments or {}), _from_environment(environ))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_format_validation_error(error)) from error


def load_ca_file(path: Path, setting: str) -> ssl.SSLContext:
    """Return a context that trusts the file's certificates alone. Raises `SettingsError` if it holds none."""
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise SettingsError(f"The setting {setting} is {str(path)!r}: {error}.") from error


def list_differing(settings: Settings, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables of the environment that say something else than the settings.

    Raises `SettingsError` for an unknown name or an impossible value.
    """
    local = load_settings(settings.as_arguments(), environ)
    values = {name: attrgetter(".".join(path)) for name, path in variables().items()}
    return [name for name, value in values.items() if value(local) != value(settings)]


def variables() -> dict[str, tuple[str, ...]]:
    """Every variable's name and the path of the setting that it sets."""
    paths: dict[str, tuple[str, ...]] = {}
    for name, field in Settings.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Group):
            for inner in group.model_fields:
                paths[f"{PREFIX}{name}_{inner}".upper()] = (name, inner)
        else:
            paths[f"{PREFIX}{name}".upper()] = (name,)
    return paths


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = variables()
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(PREFIX) or name in FOR_CLIENTS:
            continue
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SettingsError(f"{name} is not a setting of AvatarForge.{hint}")
        *groups, last = known[name]
        target = values
        for group in groups:
            target = target.setdefault(group, {})
        target[last] = text
    return values


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for piece in text.split(",") if (part := piece.strip()))


def _reveal(value: Any) -> Any:
    match value:
        case SecretStr():
            return value.get_secret_value()
        case Path():
            return str(value)
        case dict():
            return {key: _reveal(inner) for key, inner in value.items()}
    return value


def _format_validation_error(error: ValidationError) -> str:
    """Write one sentence for each fault: the setting's name, its variable, the value and what is expected."""
    sentences = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = {".".join(path) for path in variables().values()} | Settings.model_fields.keys()
            near = difflib.get_close_matches(path, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            sentences.append(f"There is no setting {path!r}.{hint}")
            continue
        variable = PREFIX + path.replace(".", "_").upper()
        given = f" is {fault['input']!r}" if _may_be_shown(fault["loc"]) else ""
        sentences.append(f"The setting {path} ({variable}){given}: {fault['msg']}.")
    return " ".join(sentences)


def _may_be_shown(path: tuple[int | str, ...]) -> bool:
    """Tell whether it is a single setting, and not a secret."""
    if tuple(path) not in variables().values():
        return False
    owner: Any = Settings
    for part in path:
        field = owner.model_fields[part]
        owner = field.annotation
    return "SecretStr" not in str(owner)
