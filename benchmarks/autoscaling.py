"""Autoscaling: a simulated day of bursty traffic on 0 to 64 GPUs, our policy beside Ray Serve's own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from ray.serve.autoscaling_policy import default_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from avatarforge.autoscaling.policy import BacklogPolicy
from avatarforge.settings import ScalingSettings
from benchmarks.fleet import DAY, Day, Fleet, World, played, traffic
from benchmarks.options import Options
from benchmarks.report import Figure, Report, Table, percentile

SEED = 20_26
TARGET_WAIT = 30.0
COLORS = {"ours": "#0072b2", "Serve's default": "#d55e00", "Serve's default, tuned": "#cc79a7"}
"""Told apart by the colour-blind too (Okabe and Ito)."""

Run = Callable[[World, Sequence[int]], Day]


def run(options: Options) -> Report:
    """Play the day once for each policy; `rounds` plays other days too."""
    world = World()
    # In quick, an hour of the morning.
    begin, end = (0, DAY) if not options.quick else (DAY // 3, DAY // 3 + 3600)
    seeds = range(SEED, SEED + options.repeat(3))
    runs: dict[str, Run] = {
        "ours": _ours(1),
        "ours, to zero": _ours(0),
        "Serve's default": _default(min_replicas=1),
        "Serve's default, to zero": _default(min_replicas=0),
        "Serve's default, tuned": _default(
            min_replicas=1,
            # As many jobs for a replica as it does within the target wait, and delays like ours.
            target_ongoing_requests=TARGET_WAIT / world.job_seconds,
            upscale_delay_s=0,
            downscale_delay_s=300,
        ),
        "64 GPUs all day": _fixed,
    }
    days: dict[str, list[Day]] = {name: [] for name in runs}
    jobs = 0
    for seed in seeds:
        arrivals = traffic(seed)[begin:end]
        jobs += sum(arrivals)
        for name, play in runs.items():
            days[name].append(play(world, arrivals))
        if seed == SEED:
            _plot(options.results / "autoscaling.png", arrivals, {name: days[name][0] for name in COLORS})
    rows = [_row(name, played_days) for name, played_days in days.items()]
    return Report(
        title="Autoscaling: a simulated day of bursty traffic, 0 to 64 GPUs",
        figures=_figures(days),
        conditions={
            "simulation": "no GPU was used: jobs, replicas and clock are made up; the policies are the real "
            "functions, ours and ray.serve's, each called once a second behind Serve's own wrapper",
            "days": f"{len(seeds)}, seeds {seeds.start} to {seeds.stop - 1}, {jobs} jobs in all; percentiles "
            "over all of them",
            "traffic": "a night with hardly a job, a day that rises to 5 jobs a second, 30 bursts of half a "
            "minute to ten minutes with 3 to 15 jobs a second more",
            "GPU": f"{world.job_seconds:g} s a job, {world.cold_start} s from decision to first job, paid "
            "for from the decision on",
            "ours": f"target wait {TARGET_WAIT:g} s, scale-down delay 300 s",
            "Serve's default": "its defaults: 2 ongoing requests a replica, 30 s up, 600 s down, average "
            "over 30 s. It is given every unfinished job as a request, as if jobs were sent to Serve at once",
            "tuned": "10 ongoing requests a replica (30 s of work), 0 s up, 300 s down",
        },
        tables=[
            Table(
                title="Waits in seconds, from arrival to start; GPU-hours a day",
                columns=(
                    "policy",
                    "p50",
                    "p90",
                    "p99",
                    "most",
                    f"within {TARGET_WAIT:g} s",
                    "GPU-hours",
                    "used",
                    "most GPUs",
                ),
                rows=rows,
            )
        ],
        notes=[
            "A burst out of nothing waits for a cold start under every policy that does not keep GPUs idle.",
            "The plot of the first day: benchmarks/results/autoscaling.png.",
        ],
    )


def _ours(least: int) -> Run:
    def play(world: World, arrivals: Sequence[int]) -> Day:
        targets = ScalingSettings(
            enabled=True,
            target_wait_seconds=TARGET_WAIT,
            min_replicas=least,
            max_replicas=world.most,
            cold_start_seconds=world.cold_start,
        )
        fleet = Fleet(world, targets)
        policy = BacklogPolicy(newest=fleet.counts, clock=lambda: fleet.now)
        # As avatarforge.app configures Serve.
        config = AutoscalingConfig(
            min_replicas=0, max_replicas=world.most, upscale_delay_s=0, downscale_delay_s=0
        )
        return played(fleet, arrivals, config, policy, first=least)

    return play


def _default(min_replicas: int, **config: float) -> Run:
    def play(world: World, arrivals: Sequence[int]) -> Day:
        given = AutoscalingConfig(min_replicas=min_replicas, max_replicas=world.most, **config)  # type: ignore[arg-type]
        fleet = Fleet(world, ScalingSettings())
        return played(fleet, arrivals, given, default_autoscaling_policy, first=min_replicas)

    return play


def _fixed(world: World, arrivals: Sequence[int]) -> Day:
    fleet = Fleet(world, ScalingSettings())
    fleet.target = world.most
    for arriving in arrivals:
        fleet.second(arriving)
    return fleet.day


def _figures(days: dict[str, list[Day]]) -> list[Figure]:
    ours, default = days["ours"], days["Serve's default"]
    return [
        Figure(name="ours, wait p50", value=percentile(_waits(ours), 0.5), unit="s"),
        Figure(name="ours, wait p90", value=percentile(_waits(ours), 0.9), unit="s"),
        Figure(name="ours, wait p99", value=percentile(_waits(ours), 0.99), unit="s"),
        Figure(name="ours, GPU-hours a day", value=_hours(ours), unit=""),
        Figure(name="Serve's default, wait p90", value=percentile(_waits(default), 0.9), unit="s"),
        Figure(name="Serve's default, wait p99", value=percentile(_waits(default), 0.99), unit="s"),
        Figure(name="Serve's default, GPU-hours a day", value=_hours(default), unit=""),
        Figure(name="GPU-hours, ours / Serve's default", value=_hours(ours) / _hours(default), unit=""),
    ]


def _row(name: str, days: Sequence[Day]) -> tuple[str | float | int, ...]:
    waits = _waits(days)
    within = sum(wait <= TARGET_WAIT for wait in waits) / len(waits)
    work = len(waits) * World().job_seconds / 3600 / len(days)
    return (
        name,
        *(percentile(waits, share) for share in (0.5, 0.9, 0.99)),
        max(waits),
        f"{within:.1%}",
        _hours(days),
        f"{work / _hours(days):.0%}",
        max(max(day.replicas) for day in days),
    )


def _waits(days: Sequence[Day]) -> list[float]:
    return [wait for day in days for wait in day.waits]


def _hours(days: Sequence[Day]) -> float:
    return fmean(day.gpu_hours for day in days)


def _plot(path: Path, arrivals: Sequence[int], days: dict[str, Day]) -> None:
    """Arrivals, GPUs and line over the day, in steps of a minute."""
    from matplotlib.figure import Figure as Plot

    minutes = range(0, len(arrivals), 60)
    hours = [minute / 3600 for minute in minutes]
    plot = Plot(figsize=(11, 8), layout="constrained")
    coming, gpus, line = plot.subplots(3, sharex=True)
    coming.plot(hours, [fmean(arrivals[at : at + 60]) for at in minutes], color="#444444", linewidth=0.8)
    coming.set_ylabel("jobs a second")
    coming.set_title("A simulated day: 3 s of GPU a job, 60 s of cold start, 64 GPUs at most", loc="left")
    for name, day in days.items():
        style = {"label": f"{name}: {day.gpu_hours:.0f} GPU-hours", "color": COLORS[name], "linewidth": 0.9}
        gpus.plot(hours, [fmean(day.replicas[at : at + 60]) for at in minutes], **style)
        late = [max(day.backlog[at : at + 60]) for at in minutes]
        line.plot(hours, late, color=COLORS[name], linewidth=0.9)
    gpus.set_ylabel("GPUs paid for")
    gpus.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    line.set_ylabel("jobs in line")
    line.set_xlabel("hour of the day")
    for axes in (coming, gpus, line):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(0, hours[-1])
        axes.set_ylim(bottom=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot.savefig(path, dpi=100, metadata={"Software": None})
