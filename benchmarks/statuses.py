"""Reads of live jobs from 32 clients, beside an ingress that answers the same for everybody."""

from benchmarks import load, waiting_jobs
from benchmarks.bare import PREFIX
from benchmarks.options import Options
from benchmarks.report import Figure, Report
from benchmarks.service import WITHOUT_GENERATION, service
from benchmarks.sides import CLIENTS, Side, turns_table

JOBS = 200


def run(options: Options) -> Report:
    reads = options.size(10_000, 500)
    rounds = options.repeat(7, quick=2)
    with service(options.folder / "service", WITHOUT_GENERATION, bare=True) as running:
        customers = [f"customer-{number}" for number in range(JOBS)]
        jobs = waiting_jobs.submit(running.url, customers)
        paths = [
            f"/customers/{customer}/photos/{job}/status"
            for customer, job in zip(customers, jobs, strict=True)
        ]
        sides = [
            Side(name, [load.get(f"{prefix}{path}") for path in paths], reads, status=200, unit="read")
            for name, prefix in (("bare ingress", PREFIX), ("AvatarForge", ""))
        ]
        for side in sides:
            side.warm_up(running)
        for _ in range(rounds):
            for side in sides:
                side.take_turn(running)
    bare, ours = sides
    return Report(
        title=f"Status reads: GET …/status of live jobs from {CLIENTS} clients",
        figures=[
            Figure(name="AvatarForge / bare ingress", value=ours.rate / bare.rate, unit="", wanted="≥ 0.6"),
            *(figure for side in sides for figure in side.figures()),
        ],
        conditions={
            "jobs": f"{JOBS} that wait, of as many customers",
            "turns": f"{rounds} of {reads} reads on each side, alternating in one cluster; medians",
            "bare ingress": "a FastAPI route in a Serve deployment that answers a small fixed document",
            "client": "one thread on the same cores, keep-alive",
            "generation": "off",
        },
        tables=[turns_table("Reads a second by turn", sides), *(side.cpu_table() for side in sides)],
    )
