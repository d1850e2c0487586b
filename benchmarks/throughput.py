"""Photos accepted a second from 32 clients, beside ingresses that only read them."""

from benchmarks import load
from benchmarks.bare import FORMS, PREFIX
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report
from benchmarks.service import WITHOUT_GENERATION, mariadb, service
from benchmarks.sides import CLIENTS, Side, turns_table


def run(options: Options) -> Report:
    photo = noisy_jpeg()
    uploads = options.size(1000, 64)
    rounds = options.repeat(7, quick=2)
    bare, form, ours = sides = (
        _side("bare ingress", f"{PREFIX}/customers", photo, uploads),
        _side("bare form", f"{PREFIX}{FORMS}", photo, uploads),
        _side("AvatarForge", "/customers", photo, uploads),
    )
    with mariadb(options.folder / "mariadb") as server:
        settings = {"AVATARFORGE_DATABASE_URL": server.create_database("avatarforge"), **WITHOUT_GENERATION}
        with service(options.folder / "service", settings, bare=True) as running:
            for side in sides:
                side.warm_up(running)
            for _ in range(rounds):
                for side in sides:
                    side.take_turn(running, server.pid)
    return Report(
        title=f"Throughput: photos accepted from {CLIENTS} clients",
        figures=[
            Figure(name="AvatarForge / bare ingress", value=ours.rate / bare.rate, unit="", wanted="≥ 0.5"),
            Figure(name="AvatarForge / bare form", value=ours.rate / form.rate, unit=""),
            *(figure for side in sides for figure in side.figures()),
        ],
        conditions={
            "photo": f"JPEG of {len(photo)} bytes, 1000 x 1000; the same request bytes on all sides",
            "turns": f"{rounds} of {uploads} uploads on each side, alternating in one cluster; medians",
            "bare ingress": "a FastAPI deployment that reads request.stream() to its end and answers 202, "
            "as many replicas and behind the same HAProxy",
            "bare form": "the same deployment, which takes the photo as FastAPI's UploadFile and reads it",
            "durable": "photo in a folder with fsync, job in MariaDB with innodb_flush_log_at_trx_commit=1, "
            "before the 202",
            "client": "one thread on the same cores; its share is in the tables below",
            "generation": "off: Stable Diffusion gets no replica, so accepted jobs wait",
        },
        tables=[turns_table("Uploads a second by turn", sides), *(side.cpu_table() for side in sides)],
    )


def _side(name: str, path: str, photo: bytes, uploads: int) -> Side:
    requests = [load.upload(f"{path}/customer-{number}", photo, "image/jpeg") for number in range(CLIENTS)]
    return Side(name, requests, uploads, status=202, unit="upload")
