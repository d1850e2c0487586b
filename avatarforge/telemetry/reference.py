"""The table of metrics in `docs/metrics.md`: `python -m avatarforge.telemetry.reference` prints the page."""

from avatarforge.telemetry import metrics
from avatarforge.telemetry.figures import Metric

HEAD = """\
# Metrics

`GET /metrics` tells Prometheus of the whole application, whichever ingress replica answers; while API keys
are in force it needs one that may administer. This page is written by
`python -m avatarforge.telemetry.reference`, and a test holds it to the code.

Ingress replicas and replicas of the models tell the trackers what they count, every two seconds, and the
trackers add it up. So

- a counter does not fall when a replica leaves, whether it says so or not; what it counted in its last two
  seconds may be lost;
- when the first shard's tracker starts again, the sums that have no `shard` begin at nought, all together,
  which Prometheus takes for a reset; what happened before is not told again;
- a tracker's own figures carry its `shard`, so that one that starts again resets its own series only. Add
  shards up in the query: `sum(rate(...))`;
- gauges of a process that has told nothing for some seconds are gone.

While a tracker does not answer, its series are absent and `avatarforge_tracker_up` is 0. Labels never hold
ids of jobs, customers or replicas. A dashboard for Grafana lies in `deploy/grafana/`, alert rules with their
tests in `deploy/prometheus/`. What Ray and Serve tell of themselves has their own names and ports.
"""


def page() -> str:
    """The whole page."""
    rows = [_row(metric) for metric in metrics.ALL]
    return "\n".join([HEAD, "| metric | kind | labels | what |", "| --- | --- | --- | --- |", *rows, ""])


def _row(metric: Metric) -> str:
    kind = type(metric).__name__.lower()
    labels = ", ".join(f"`{name}`" for name in metric.label_names)
    return f"| `{metric.name}` | {kind} | {labels} | {metric.help} |"


if __name__ == "__main__":
    print(page(), end="")
