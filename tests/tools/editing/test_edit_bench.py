"""A sample of `python -m tests.long.edit_bench`: well-formed edits land, wrong ones change nothing."""

from pathlib import Path

from tests.long.edit_bench import bench


def test_edits_land_where_they_were_meant_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    made, languages = bench(25, 3, tmp_path)
    assert made.counts["wrong place"] == made.counts["wrong accepted"] == 0, made.failures
    assert made.counts["applied"] == made.counts["well-formed"] == 25, made.failures
    assert len(languages) >= 2
