"""The score task: rows of every kind in, verdicts out, in order; bad rows named."""

import gzip
import io
import json
import pathlib

import pytest

from swerl_jax.env.progress import Progress
from swerl_jax.env.reward import RewardSpec
from swerl_jax.env.score_file import score_file

CASES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "spec" / "reward_cases.jsonl"
FILES = {"m.py": "a\n"}
ORACLE = {"m.py": "b\n"}


def answer(search, replace):
    block = f"```\n### m.py\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```"
    return f"<think>t</think><solution>{block}</solution>"


def row(**fields):
    return {"code_context": FILES, "oracle_new_content": ORACLE, "output": answer("a", "b"), **fields}


def write(path, rows):
    lines = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


def read(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def score(source, target, **options):
    return score_file(source, target, RewardSpec(), **{"workers": 2, "deadline_s": 30.0, "progress": False, **options})


def test_recorded_cases(tmp_path):
    if not CASES.exists():
        pytest.skip(f"the recorded cases are not at {CASES}")
    summary = score(CASES, tmp_path / "out.jsonl")
    rows, scored = read(CASES), read(tmp_path / "out.jsonl")
    assert [r["case"] for r in scored] == [r["case"] for r in rows]
    for before, after in zip(rows, scored, strict=True):
        assert after["reward"] == pytest.approx(before["reward"], abs=1e-9)
        assert after["similarities"] == before["metadata"].get("similarities", [])
        assert {key: after[key] for key in before} == {**before, "reward": after["reward"]}
        assert bool(after["reason"]) == (after["reward"] == -1)
    assert summary.rows == len(rows) and summary.skipped == 0
    assert summary.mean_reward == pytest.approx(sum(r["reward"] for r in rows) / len(rows))
    assert sum(summary.reasons.values()) == sum(r["reward"] == -1 for r in rows)


def test_rollout_file_compressed(tmp_path):
    group = {"kind": "group", "example_id": "e", "index": 0, "prompt": "…",
             "code_context": FILES, "oracle_new_content": ORACLE}
    rollout = {"kind": "rollout", "example_id": "e", "sample": 0, "output": answer("a", "b"), "tokens": 7,
               "reward": 0.25, "is_well_formed": False}  # as another reward judged it
    other = {**group, "example_id": "f", "oracle_new_content": {"m.py": "c\n"}}
    source = write(tmp_path / "step_000001.jsonl.gz", [
        group, rollout, {**rollout, "sample": 1, "output": "\ud800"}, "", other, {**rollout, "example_id": "f"},
    ])  # fmt: skip
    summary = score(source, tmp_path / "again.jsonl.gz")
    rows = read(tmp_path / "again.jsonl.gz")
    assert rows[0] == group and rows[3] == other
    assert rows[1] == {**rollout, "reward": 1.0, "status": "scored", "reason": "", "detail": "", "is_exact": True,
                       "is_well_formed": True,
                       "similarities": [{"path": "m.py", "pred_change": "@@ -1 +1 @@\n-a\n+b", "similarity": 1.0,
                                         "oracle_change": "@@ -1 +1 @@\n-a\n+b"}]}  # fmt: skip
    assert (rows[2]["output"], rows[2]["reason"], rows[2]["is_well_formed"]) == ("\ud800", "tag_count", False)
    # "@@ -1 +1 @@\n-a\n+" of 17 + 1 characters is common.
    assert rows[4]["reward"] == pytest.approx(2 * 16 / 34)
    assert (summary.rows, summary.groups, summary.exact) == (3, 2, 1)
    assert summary.statuses == {"scored": 2, "policy_fault": 1} and summary.reasons == {"tag_count": 1}
    assert "3 rows" in str(summary) and "tag_count 1" in str(summary)


BAD = {
    "{": "Expecting",
    "[1]": "list",
    '{"output": 3, "code_context": {}, "oracle_new_content": {}}': "output is int",
    '{"output": "x", "oracle_new_content": {}}': "code_context",
    '{"output": "x", "code_context": {"a": 1}, "oracle_new_content": {}}': "code_context",
    '{"api": "bleu"}': "api is 'bleu'",
    '{"api": "unified_diff", "pred_patches": "text", "oracle_patches": []}': "pred_patches",
    '{"kind": "rollout", "output": "x"}': "without a group",
    "[" * 100_000: "deep",
}


@pytest.mark.parametrize("line", BAD, ids=BAD.values())
def test_a_bad_row_stops_and_is_named(tmp_path, line):
    source = write(tmp_path / "in.jsonl", [row(), "", line, row()])
    with pytest.raises(ValueError, match=rf"in\.jsonl, row 3: .*{BAD[line]}"):
        score(source, tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]  # no half of an output


def test_bad_rows_are_skipped_and_counted(tmp_path, capsys):
    other = {"kind": "group", "example_id": "e", "code_context": 3}
    lost = {"kind": "rollout", "example_id": "e", "output": answer("a", "b")}
    source = write(tmp_path / "in.jsonl", [row(n=1), *BAD, row(n=2), other, lost, row(n=3)])
    summary = score(source, tmp_path / "out.jsonl", on_malformed="skip")
    assert [r["n"] for r in read(tmp_path / "out.jsonl")] == [1, 2, 3]
    assert (summary.rows, summary.skipped) == (3, len(BAD) + 2)
    errors = capsys.readouterr().err.splitlines()
    assert [int(line.split("row ")[1].split(":")[0]) for line in errors] == [*range(2, 2 + len(BAD)), 12, 13]


def test_infra_faults_have_no_reward(tmp_path, monkeypatch):
    (tmp_path / "broken_reward.py").write_text("def f(output, files, oracle):\n    raise OSError('disk')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = write(tmp_path / "in.jsonl", [row()])
    summary = score_file(source, tmp_path / "out.jsonl", RewardSpec("broken_reward:f"), 1, 30.0, progress=False)
    assert read(tmp_path / "out.jsonl")[0]["reward"] is None
    assert (summary.rows, summary.mean_reward, summary.statuses) == (1, None, {"infra_fault": 1})


def test_refusals(tmp_path):
    source, target = write(tmp_path / "in.jsonl", [row()]), tmp_path / "out.jsonl"
    target.write_text("precious")
    with pytest.raises(ValueError, match="exists"):
        score(source, target)
    assert target.read_text() == "precious"
    with pytest.raises(ValueError, match="both input and output"):
        score(source, source, overwrite=True)
    with pytest.raises(ValueError, match="no file"):
        score(tmp_path / "none.jsonl", target, overwrite=True)
    with pytest.raises(ValueError, match="on_malformed"):
        score(source, target, overwrite=True, on_malformed="ignore")
    write(tmp_path / "bad.jsonl.gz", []).write_bytes(b"not gzip")
    with pytest.raises(ValueError, match="gzip"):
        score(tmp_path / "bad.jsonl.gz", tmp_path / "new.jsonl")
    score(source, target, overwrite=True)
    assert len(read(target)) == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress(monkeypatch):
    now_s = [0.0]
    monkeypatch.setattr("swerl_jax.env.progress.time.monotonic", lambda: now_s[0])
    log, terminal = io.StringIO(), Terminal()
    for stream in (log, terminal):
        now_s[0] = 0.0
        with Progress(100, "scoring", stream) as bar:
            for _ in range(25):
                now_s[0] += 1.0
                bar.advance(2)
    assert log.getvalue().splitlines() == ["scoring  20% 10 s, 40 s left ", "scoring  40% 20 s, 30 s left "]
    assert terminal.getvalue().count("\r") == 26
    assert terminal.getvalue().endswith("scoring  50% 25 s, 25 s left \x1b[K\n")
