"""The service's clock is forty days ahead, or an hour behind, for a minute in the middle of a crowd's jobs.

A library before the C library's tells the service's processes that time; the database keeps the right one.
Jobs and events are kept for a week, so that whoever believes the clock erases them.
"""

import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from avatarforge.client import Client
from avatarforge.persistence import JobRepository, open_engine
from avatarforge.settings import DatabaseSettings
from avatarforge.storage.folder import FolderStorage
from benchmarks.photos import noisy_jpeg
from tests.chaos.conftest import IS_LONG, JOBS, SHORT_MEMORY, assert_recovered, models_folder
from tests.chaos.crowd import RECOVERED, Crowd, Outcome, now
from tests.checkpoints import tiny_models
from tests.servers.avatarforge import AvatarForgeServer
from tests.servers.mariadb import MariaDbServer

pytestmark = [
    pytest.mark.skipif(not IS_LONG, reason="the clock is wrong for a minute: `make chaos`"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="it compiles a clock: Debian's gcc"),
    pytest.mark.timeout(900),
]

WRONG_SECONDS = 60.0


SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static volatile long *offset;

__attribute__((constructor)) static void begin(void) {
    const char *name = program_invocation_short_name, *path = getenv("CLOCK_OFFSET");
    int file;
    /* Ray's own servers wait by the time of day, which no clock that is set makes them do. */
    if (path == NULL || (strncmp(name, "python", 6) != 0 && strncmp(name, "ray::", 5) != 0)) return;
    if ((file = open(path, O_RDONLY | O_CLOEXEC)) < 0) return;
    void *page = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) offset = page;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, at);
    if (answer == 0 && offset != NULL && clock == CLOCK_REALTIME) at->tv_sec += *offset;
    return answer;
}
"""


class Clock:
    """The time of day of Python's processes that were started with its variables."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        source = folder / "clock.c"
        source.write_text(SOURCE)
        command = ["cc", "-shared", "-fPIC", "-o", str(folder / "clock.so"), str(source), "-ldl"]
        subprocess.run(command, check=True)
        (folder / "offset").write_bytes(bytes(8))

    def set(self, ahead: timedelta) -> None:
        """Let them see another time, from this moment on."""
        with (self._folder / "offset").open("r+b") as file:
            file.write(struct.pack("l", round(ahead.total_seconds())))

    def variables(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._folder / "clock.so"), "CLOCK_OFFSET": str(self._folder / "offset")}


@dataclass(frozen=True)
class Rig:
    service: AvatarForgeServer
    clock: Clock
    records: JobRepository
    storage: FolderStorage


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("clock")
    clock = Clock(folder)
    with MariaDbServer(folder / "mariadb") as mariadb, pytest.MonkeyPatch.context() as environment:
        url = mariadb.create_database("avatarforge")
        for name, value in clock.variables().items():
            environment.setenv(name, value)
        service = AvatarForgeServer(
            folder / "data",
            DATABASE_URL=url,
            TRACKER_JOB_RETENTION_DAYS="7",
            TRACKER_EVENT_RETENTION_DAYS="7",
            DIFFUSION_MODELS_DIR=str(models_folder() or tiny_models()),
            **SHORT_MEMORY,
        )
        service.start()
        environment.undo()
        try:
            records = JobRepository(open_engine(DatabaseSettings(), url))
            yield Rig(service, clock, records, FolderStorage(folder / "data" / "objects"))
        finally:
            clock.set(timedelta())
            service.stop()


@pytest.mark.parametrize("ahead", [timedelta(days=40), -timedelta(hours=1)], ids=str)
def test_a_wrong_clock_erases_nothing_and_holds_nothing_up(rig: Rig, ahead: timedelta) -> None:
    with Client(rig.service.url, timeout=90) as forge:
        before = forge.submit("ana", noisy_jpeg(20_000, 256), steps=2, timeout_seconds=3600)
        forge.wait(before, seconds=90)
        crowd = Crowd(rig.service.url, noisy_jpeg(20_000, 256), JOBS, pause=4 * (WRONG_SECONDS + 20) / JOBS)
        outcome = Outcome(crowd, rig.records, rig.storage)
        crowd.start()
        crowd.await_accepted(JOBS // 8)
        rig.clock.set(ahead)
        try:
            time.sleep(WRONG_SECONDS / 2)
            meanwhile = forge.submit("ana", noisy_jpeg(20_000, 256), steps=2)
            wrong = forge.wait(meanwhile, seconds=90).created_at
            time.sleep(WRONG_SECONDS / 2)
        finally:
            rig.clock.set(timedelta())
        over = now()
        assert abs(wrong - over - ahead) < timedelta(minutes=5), "the service was told another time"
        crowd.finish()
        assert_recovered(outcome, f"clock wrong by {ahead}", "work after its end", over, RECOVERED)
        for job in (before, meanwhile):
            assert forge.get_status(job).is_terminal
            assert forge.download(job).content
        assert crowd.refusals.keys() <= {503}, crowd.refusals
