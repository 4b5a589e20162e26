"""A run whose directory is in a bucket: its checkpoints there, its other files here and there, and machines that come and go."""

import json
import shutil
import signal
import subprocess

import fsspec
import jax
import jax.numpy as jnp
import joined
import numpy as np
import pytest
import small
import test_resume

from swerl_jax import mirror
from swerl_jax.learn import checkpoint, manifest

pytestmark = pytest.mark.slow
RUN = "gs://bucket/runs/x"


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    fake_gcs = pytest.importorskip("fake_gcs", reason="gcsfs is not installed; bash tests/run.sh --slow installs it")
    monkeypatch.setenv("SWERL_JAX_CACHE", str(tmp_path / "cache"))
    return fake_gcs.play(monkeypatch)


def save(checkpoints, step):
    checkpoints.save(step, {"w": jnp.full((16,), step, jnp.float32)}, {"position": step})


def value(checkpoints, step):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    arrays, host = checkpoints.restore(step, {"w": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=here)})
    assert set(np.asarray(arrays["w"])) == {host["position"]}
    return host["position"]


def download(name, directory):
    """What the bucket has below `name`, as files."""
    fsspec.filesystem("gs", skip_instance_cache=True).get(f"bucket/{name}/", f"{directory}/", recursive=True)
    return directory


def test_checkpoints_in_a_bucket(bucket, tmp_path):
    """The newest are kept, each counts only behind its manifest, and one copied to a disk and back is as good."""
    seen = []
    saved = checkpoint.Checkpoints(f"{RUN}/checkpoints", keep=2, before_good=lambda: seen.append(
        sum(name.endswith(manifest.NAME) for name in bucket.objects)))
    for step in (3, 4, 5):
        save(saved, step)
    saved.close()
    assert seen == [0, 1, 2] and saved.steps() == [4, 5]
    assert not [name for name in bucket.objects if "step_000003" in name]
    reader = checkpoint.Checkpoints.open(RUN)
    assert reader.newest == 5 and value(reader, 5) == 5 and value(reader, 4) == 4
    copy = download("runs/x", tmp_path / "copy")
    here = checkpoint.Checkpoints.open(copy)
    assert here.newest == 5 and value(here, 5) == 5
    save(writer := checkpoint.Checkpoints(copy / "checkpoints", keep=1), 6)
    writer.close()
    fsspec.filesystem("gs").put(f"{copy}/", "bucket/runs/y/", recursive=True)
    assert checkpoint.Checkpoints.open("gs://bucket/runs/y").newest == 6
    with pytest.raises(ValueError, match="no checkpoint directory at gs://bucket/runs/z"):
        checkpoint.Checkpoints.open("gs://bucket/runs/z")


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_and_what_was_begun_goes(bucket):
    saved = checkpoint.Checkpoints(f"{RUN}/checkpoints", keep=2)
    for step in (4, 5):
        save(saved, step)
    saved.close()
    place = "runs/x/checkpoints/step_000005/"
    names = [name for name in bucket.objects if name.startswith(place) and not name.endswith(manifest.NAME)]
    assert len(names) >= 6
    for name in names:
        content, _ = before = bucket.objects[name]
        rejected = {}
        for damaged in (bytes([content[0] ^ 4]) + content[1:], content[:-1], None):
            bucket.objects.pop(name)
            if damaged is not None:
                bucket.write(name, damaged)
            assert checkpoint.Checkpoints.open(RUN, rejected.__setitem__).newest == 4
            assert name.removeprefix(place) in rejected[5]
        bucket.objects[name] = before
    for mark in (manifest.NAME, "commit_success.txt"):  # as a save or a deletion that was cut off
        del bucket.objects[place + mark]
        if mark == manifest.NAME:
            assert checkpoint.Checkpoints(f"{RUN}/checkpoints", keep=2).steps() == [4, 5]
    again = checkpoint.Checkpoints(f"{RUN}/checkpoints", keep=2)
    assert again.steps() == [4] and not [name for name in bucket.objects if name.startswith(place)]
    save(again, 5)
    assert again.latest_good() == 5 and value(again, 5) == 5


def test_files_go_to_the_bucket_and_come_from_it(bucket, monkeypatch):
    one = mirror.Mirror(RUN)
    for name, text in {"config.json": "{}", "tasks/a": "a", "metrics.jsonl": "1\n", "rollouts/1": "r", "b.partial": "?"}.items():
        (one.local / name).parent.mkdir(exist_ok=True)
        (one.local / name).write_text(text)
    one.push()
    assert sorted(list(bucket.objects)[:2]) == ["runs/x/rollouts/1", "runs/x/tasks/a"]
    assert list(bucket.objects)[2:] == ["runs/x/config.json", "runs/x/metrics.jsonl"], "last what says that all is there"
    generations = {name: generation for name, (_, generation) in bucket.objects.items()}
    with open(one.local / "metrics.jsonl", "a") as file:
        file.write("2\n")
    (one.local / "rollouts/1").unlink()
    one.push()
    assert [name for name in generations if bucket.objects.get(name, (b"", 0))[1] != generations[name]] == [
        "runs/x/rollouts/1", "runs/x/metrics.jsonl"] and bucket.objects["runs/x/metrics.jsonl"][0] == b"1\n2\n"
    other = mirror.of_run(f"{RUN}/checkpoints")
    assert other.place == RUN and sorted(path.name for path in other.local.rglob("*")) == ["a", "config.json", "tasks"]
    other.push()
    assert "runs/x/metrics.jsonl" in bucket.objects, "what was not fetched is not deleted"
    for path in one.local.glob("*.json*"):
        path.unlink()
    one.push()
    assert {"runs/x/config.json", "runs/x/metrics.jsonl"} <= bucket.objects.keys(), "a copy that someone cleared clears nothing"
    bucket.objects["runs/y/model/config.json"] = bucket.objects["runs/x/config.json"]
    begun = mirror.Mirror("gs://bucket/runs/y")
    begun.pull_run()
    assert not list(begun.local.iterdir()), "what a start left that never was a run"
    assert other.named(f"see {other.local}/table.md") == f"see {RUN}/table.md"
    with pytest.raises(ValueError, match="gs://nobucket/x cannot be read"):
        mirror.Mirror("gs://nobucket/x").pull_run()
    with pytest.raises(ValueError, match="checkpoints are written nowhere else"):
        mirror.Mirror("s3://bucket/x")
    monkeypatch.setattr(mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gcsfs is needed for a bucket and not installed: pip install -e \.\[gcs\]"):
        mirror.check(RUN)


def test_a_run_goes_on_on_another_machine(bucket, tmp_path):
    """Killed in mid-save on a machine that keeps nothing, it ends as the run on a disk that was never killed."""
    small.write_examples(tmp_path / "data")
    arguments, env = [f"--config=tests/small.py:{tmp_path / 'data'}"], small.environment(tmp_path / "compilations")
    test_resume.Run(arguments, env, tmp_path / "whole").finish()
    run, place = test_resume.Run(arguments, env, RUN), "runs/x/checkpoints/step_000004/"
    run.wait_for(lambda _: f"{place}host/metadata" in bucket.objects)
    run.kill(signal.SIGKILL)
    assert run.process.returncode == -signal.SIGKILL and place + manifest.NAME not in bucket.objects
    shutil.rmtree(tmp_path / "cache")
    output = test_resume.Run(arguments, env, RUN, "--resume").finish()
    assert "resuming after step 2" in output and f"table    {RUN}/table.md" in output and str(tmp_path / "cache") not in output
    test_resume.assert_equal(download("runs/x", tmp_path / "copy"), tmp_path / "whole")
    assert not list((tmp_path / "cache/runs").iterdir())
    refused = small.run(*arguments, f"--workdir={RUN}")
    assert refused.returncode == 2 and f"{RUN} holds a run already" in refused.stderr
    judged = small.run("--config=configs/eval.py", f"--config.checkpoint={RUN}", "--config.eval.examples=3")
    assert judged.returncode == 0 and RUN in judged.stdout, judged.stderr


def start(tmp_path, rank, address):
    return subprocess.Popen(
        small.command(f"--config=tests/small.py:{tmp_path / 'data'}", f"--workdir={RUN}", "--config.phases=('rl',)",
                      "--config.rl.steps=2", "--config.tokenizer=train:400", "--config.eval.every_steps=0",
                      "--config.rl.minibatches=1", "--config.answer.max_tokens=32", "--config.engine.ticks=32",
                      "--config.rl.row_tokens=(128,)", f"--config.distributed.coordinator={address}",
                      "--config.distributed.processes=2", f"--config.distributed.process={rank}",
                      f"--config.distributed.heartbeat_s={joined.HEARTBEAT_S}"),
        cwd=small.ROOT, env=joined.environment(1, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compilations"),
                                               SWERL_JAX_CACHE=str(tmp_path / f"host{rank}")),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_hosts_share_nothing_but_the_bucket(bucket, tmp_path):
    """Process 0 trains the tokenizer, the other one gets it; both write the checkpoint."""
    small.write_examples(tmp_path / "data")
    address = joined.free_address()
    hosts = [start(tmp_path, rank, address) for rank in range(2)]
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
    saved = checkpoint.Checkpoints.open(RUN)
    listed = json.loads(bucket.objects[f"runs/x/checkpoints/step_{saved.newest:06d}/{manifest.NAME}"][0])["files"]
    assert saved.newest == 2 and {f"arrays/ocdbt.process_{rank}/manifest.ocdbt" for rank in range(2)} <= listed.keys()
    lines = bucket.objects["runs/x/metrics.jsonl"][0].splitlines()
    assert [json.loads(line)["step"] for line in lines][-2:] == [1, 2] and "runs/x/table.md" in bucket.objects
