"""The same work by Apache Beam: the same bytes. Collected only where apache_beam is installed (see conftest)."""

import datetime
import json

from curated import Inline, config, make_clone, shards

from swerl_jax.curate import tasks
from swerl_jax.curate.beam_engine import BeamEngine


def test_beam_gives_the_same_bytes(tmp_path):
    for number in range(2):
        make_clone(tmp_path / "clones" / f"{number}.git", f"o/{number}", fixes=9, seed=number)
    source = f"git:{tmp_path / 'clones'}"
    tasks.curate(config(source, tmp_path / "plain"), Inline())
    told = tasks.curate(config(source, tmp_path / "beam", beam="--runner=DirectRunner"), BeamEngine("--runner=DirectRunner"))
    assert shards(tmp_path / "beam") == shards(tmp_path / "plain") and "examples to learn from" in told
    made = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "beam")]
    assert made[0]["shards"] == made[1]["shards"] and made[0]["funnel"] == made[1]["funnel"]


def test_parquet_rows_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"repo": "o/n", "instance_id": f"o__n-{number}", "base_commit": "b", "test_patch": "",
             "created_at": f"2024-01-0{number + 1}T00:00:00Z",
             "problem_statement": f"It breaks with error {number} when called for the {number * 7}th time",
             "patch": f"--- a/m.py\n+++ b/m.py\n@@ -1 +1 @@\n-return {number}\n+return {number} + {number * 3}\n"}
            for number in range(3)]
    timed = [row | {"created_at": datetime.datetime.fromisoformat(row["created_at"])} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(timed), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("rows.parquet", "rows.jsonl"):
        tasks.curate(config(f"swebench:{tmp_path / name}", tmp_path / f"out-{name}"), Inline())
    assert shards(tmp_path / "out-rows.parquet") == shards(tmp_path / "out-rows.jsonl")
