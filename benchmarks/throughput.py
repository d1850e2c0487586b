"""Photos accepted a second from 32 clients, beside ingresses that only read them, and with S3."""

from benchmarks import load
from benchmarks.bare import FORMS, PREFIX
from benchmarks.options import Options
from benchmarks.photos import noisy_jpeg
from benchmarks.report import Figure, Report
from benchmarks.service import WITHOUT_GENERATION, mariadb, service
from benchmarks.sides import CLIENTS, Side, turns_table
from tests.servers.mariadb import MariaDbServer
from tests.servers.s3 import S3Server


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
        with_s3 = _with_s3(options, server, photo, uploads, rounds)
    return Report(
        title=f"Throughput: photos accepted from {CLIENTS} clients",
        figures=[
            Figure(name="AvatarForge / bare ingress", value=ours.rate / bare.rate, unit="", wanted="≥ 0.5"),
            Figure(name="AvatarForge / bare form", value=ours.rate / form.rate, unit=""),
            *(figure for side in (*sides, with_s3) for figure in side.figures()),
        ],
        conditions={
            "photo": f"JPEG of {len(photo)} bytes, 1000 x 1000; the same request bytes on all sides",
            "turns": f"{rounds} of {uploads} uploads on each side, alternating in one cluster; medians",
            "bare ingress": "a FastAPI deployment that reads request.stream() to its end and answers 202, "
            "as many replicas and behind the same HAProxy",
            "bare form": "the same deployment, which takes the photo as FastAPI's UploadFile and reads it",
            "durable": "photo in a folder with fsync, job in MariaDB with innodb_flush_log_at_trx_commit=1, "
            "before the 202",
            "with S3": "AvatarForge alone, afterwards; photos in an S3 server (rclone) on the same cores, "
            "whose share is not in the table",
            "client": "one thread on the same cores; its share is in the tables below",
            "generation": "off: Stable Diffusion gets no replica, so accepted jobs wait",
        },
        tables=[
            turns_table("Uploads a second by turn", sides),
            *(side.cpu_table() for side in (*sides, with_s3)),
        ],
    )


def _with_s3(options: Options, server: MariaDbServer, photo: bytes, uploads: int, rounds: int) -> Side:
    side = _side("with S3", "/customers", photo, uploads)
    with S3Server(options.folder / "s3") as storage:
        variables = {
            "AVATARFORGE_DATABASE_URL": server.create_database("with_s3"),
            **{f"AVATARFORGE_{name}": value for name, value in storage.variables().items()},
            **WITHOUT_GENERATION,
        }
        with service(options.folder / "service-with-s3", variables) as running:
            side.warm_up(running)
            for _ in range(rounds):
                side.take_turn(running, server.pid)
    return side


def _side(name: str, path: str, photo: bytes, uploads: int) -> Side:
    requests = [load.upload(f"{path}/customer-{number}", photo, "image/jpeg") for number in range(CLIENTS)]
    return Side(name, requests, uploads, status=202, unit="upload")
