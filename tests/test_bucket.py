"""A bucket of Google Cloud Storage, played on this machine: curation writes to it, training and import read from it."""

import pathlib

import fsspec
import numpy as np
import pytest
from curated import Inline, config, make_clone, shards

from swerl_jax.curate import tasks
from swerl_jax.data.shards import MalformedRow, open_examples
from swerl_jax.models import shipped
from swerl_jax.policy import hf, stored

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    fake_gcs = pytest.importorskip("fake_gcs", reason="gcsfs is not installed; bash tests/run.sh --slow installs it")
    fake_gcs.play(monkeypatch)
    monkeypatch.setenv("SWERL_JAX_CACHE", str(tmp_path / "cache"))
    return fsspec.filesystem("gs", skip_instance_cache=True)


def test_shards_go_to_a_bucket_and_are_read_from_it(bucket, tmp_path):
    make_clone(tmp_path / "a.git", "o/n")
    tasks.curate(config(f"git:{tmp_path / 'a.git'}", tmp_path / "here"), Inline())
    for _ in range(2):  # the second time all is there
        told = tasks.curate(config(f"git:{tmp_path / 'a.git'}", "gs://bucket/deep/there"), Inline())
    assert "\ngs://bucket/deep/there: " in told
    names = shards(tmp_path / "here")
    assert names and {name: bucket.cat_file(f"bucket/deep/there/{name}") for name in names} == names
    train, held_out = tasks.shards_at("gs://bucket/deep/there")
    for pattern, where in ((train, "train-*"), (held_out, "held_out-*")):
        assert list(open_examples(pattern)) == list(open_examples(tmp_path / "here" / where))
    assert tasks.inspect(config("", "", data__shards="gs://bucket/deep/there"), lambda name: False, colour=False)


def test_a_changed_file_is_copied_anew_and_a_bad_row_is_named_by_its_url(bucket):
    url = "gs://bucket/rows.jsonl"
    for text in ("{}\n", "{}\n[]\n"):
        bucket.pipe_file("bucket/rows.jsonl", text.encode())
        fsspec.filesystem("gs").invalidate_cache()
        assert len(open_examples(url)) == text.count("\n")
    with pytest.raises(MalformedRow, match=f"^{url}, row 2: "):
        open_examples(url)[1]
    with pytest.raises(ValueError, match="found no examples at gs://bucket/none"):
        open_examples("gs://bucket/none")


def test_a_model_is_read_from_a_bucket(bucket):
    here = pathlib.Path(shipped.find("embedded:tiny"))
    bucket.put(f"{here}/", "bucket/model/", recursive=True)
    assert hf.read_arch("gs://bucket/model") == hf.read_arch(str(here))
    (ours, _), (theirs, _) = stored.find(str(here)), stored.find("gs://bucket/model")
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(theirs[name].read(), ours[name].read())
