"""docs/sizing.md tells what the results say."""

from dataclasses import replace

import pytest

from benchmarks.sizing import PAGE, Costs, tables, written

COSTS = Costs(
    ingress_upload_to_s3=4.0,
    ingress_upload_to_folder=3.0,
    ingress_read=0.2,
    tracker_upload=1.0,
    database_upload=0.2,
    stream_kilobytes=54.0,
)


def test_the_page_holds_the_newest_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page, tables(Costs.measured())), "run `python -m benchmarks.sizing`"


def test_ten_million_photos_a_day_are_347_a_second_in_the_peak() -> None:
    # 347 times (4 + 5 * 0.2) ms are 1.7 cores of ingress at 60 %: three replicas, and one that may stop.
    assert "| 10,000,000 | 116 | 347 | 4 | 2 | 0.2 cores |" in tables(COSTS)["arithmetic"]


def test_dearer_uploads_need_more_replicas() -> None:
    dearer = tables(replace(COSTS, ingress_upload_to_s3=8.0))["arithmetic"]
    assert "| 10,000,000 | 116 | 347 | 7 |" in dearer


def test_a_page_without_the_place_of_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        written("# Nothing here", {"measured": "| a |"})
