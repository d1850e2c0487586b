"""The deployment under a real Serve, in a process of its own since Ray leaves its mark on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import tiny_models

ROOT = Path(__file__).parents[2]


def test_a_replica_survives_a_wrong_start_generates_survives_a_wrong_change_and_stops_when_cancelled(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.replica", str(tmp_path), str(tiny_models())],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, done.stderr[-4000:]
    seen = json.loads(answers[0].removeprefix("ANSWER "))
    assert (seen["served"]["model"], seen["served"]["failure"]) == ("avatar-mini", None)
    assert (seen["after"]["model"], seen["after"]["desiredModel"]) == ("avatar-mini", "nosuch")
    assert len(seen["told"]) == 3
    # The cancelled one left nothing.
    assert sorted(seen["avatars"]) == seen["told"]
