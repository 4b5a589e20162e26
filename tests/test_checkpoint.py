"""Checkpoints: bit-equal on any mesh, never trusted when damaged, whole after a kill at any moment."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swerl_jax.learn import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _mesh(data, tensor):
    devices = jax.devices()
    if len(devices) < data * tensor:
        pytest.skip(f"needs {data * tensor} devices, this process has {len(devices)}")
    return jax.sharding.Mesh(np.array(devices[: data * tensor]).reshape(data, tensor), ("data", "tensor"))


def _bits(shape, dtype, seed):
    """Random bit patterns (NaNs and subnormals among them) seen as `dtype`."""
    raw = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    return np.frombuffer(raw.tobytes(), dtype).reshape(shape)


def _arrays(mesh):
    place = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))  # noqa: E731
    return {
        "layers/0/q": jax.device_put(_bits((8, 8), jnp.bfloat16, 1), place("data", "tensor")),
        "layers.0/q": jax.device_put(_bits((8, 4), np.float32, 2), place(None, "data")),
        "optimizer/step": jax.device_put(np.int32(7), place()),
        "key": jax.device_put(np.array([1, 2**32 - 1], np.uint32), place()),
    }


def _abstract(arrays, sharding):
    return {path: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding) for path, array in arrays.items()}


def _single():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _small_run(directory, steps, keep=5, **options):
    saved = checkpoint.Checkpoints(directory, keep, **options)
    for step in steps:
        saved.save(step, {"w": jnp.full((16,), step, jnp.float32)}, {"position": step})
    saved.wait()
    return saved


def _value(checkpoints, step):
    arrays, host = checkpoints.restore(step, {"w": jax.ShapeDtypeStruct((16,), jnp.float32, sharding=_single())})
    assert set(np.asarray(arrays["w"])) == {host["position"]}
    return host["position"]


@pytest.fixture
def rejections():
    class Rejections(dict):
        def __call__(self, step, reason):
            self[step] = reason

    return Rejections()


@pytest.mark.parametrize("target", ["same mesh", "other mesh", "fewer devices", "one device"])
def test_round_trip_is_bit_equal_on_any_mesh(tmp_path, target):
    arrays = _arrays(_mesh(4, 2))
    host = {"position": 2**60, "nested": {"list": [1, "é\ud800", None, 0.1]}}
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    checkpoints.save(3, arrays, host)
    shardings = {
        "same mesh": lambda: {path: array.sharding for path, array in arrays.items()},
        "other mesh": lambda: dict.fromkeys(arrays, jax.NamedSharding(_mesh(2, 4), jax.P())),
        "fewer devices": lambda: {
            path: jax.NamedSharding(_mesh(1, 2), jax.P("tensor") if array.ndim else jax.P())
            for path, array in arrays.items()
        },
        "one device": lambda: dict.fromkeys(arrays, _single()),
    }[target]()
    abstract = {p: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings[p]) for p, a in arrays.items()}
    restored, restored_host = checkpoints.restore(3, abstract)
    assert restored_host == host == checkpoints.host(3)
    assert restored.keys() == arrays.keys()
    for path, array in arrays.items():
        assert restored[path].sharding == shardings[path] and restored[path].dtype == array.dtype
        assert np.asarray(restored[path]).tobytes() == np.asarray(array).tobytes()
    checkpoints.close()


def test_arrays_may_be_donated_once_save_returns(tmp_path):
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
    weights = jnp.arange(2**23, dtype=jnp.float32)
    host = {"list": [1]}
    checkpoints.save(1, {"w": weights}, host)
    host["list"].append(2)
    for _ in range(30):
        weights = overwrite(weights)
    abstract = {"w": jax.ShapeDtypeStruct(weights.shape, weights.dtype, sharding=_single())}
    restored, restored_host = checkpoints.restore(1, abstract)
    np.testing.assert_array_equal(restored["w"], np.arange(2**23, dtype=np.float32))
    assert restored_host == {"list": [1]}


def test_keeps_the_newest_k_and_finds_the_newest(tmp_path):
    checkpoints = _small_run(tmp_path / "checkpoints", [1, 2, 10, 11], keep=2)
    assert checkpoints.steps() == [10, 11] and checkpoints.latest_good() == 11
    reader = checkpoint.Checkpoints.open(tmp_path)
    assert reader.newest == 11 and reader.directory == checkpoints.directory
    assert _value(reader, 10) == 10
    with pytest.raises(ValueError, match="opened for reading"):
        reader.save(12, {"w": jnp.ones(1)}, {})
    with pytest.raises(ValueError, match="already saved"):
        checkpoints.save(11, {"w": jnp.ones(1)}, {})


def test_a_flipped_byte_in_any_file_is_found(tmp_path, rejections):
    _small_run(tmp_path, [4, 5]).close()
    files = sorted(path for path in (tmp_path / "step_000005").rglob("*") if path.is_file())
    assert len(files) >= 6
    for path in files:
        original = path.read_bytes()
        middle = len(original) // 2
        path.write_bytes(original[:middle] + bytes([original[middle] ^ 4]) + original[middle + 1 :])
        assert checkpoint.Checkpoints.open(tmp_path, rejections).newest == 4
        assert path.name == "manifest.json" or path.relative_to(tmp_path / "step_000005").as_posix() in rejections[5]
        rejections.clear()
        path.write_bytes(original)
    assert checkpoint.Checkpoints.open(tmp_path, rejections).newest == 5 and not rejections


def _truncate(step):
    path = max(step.rglob("d/*"), key=lambda file: file.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "bytes, not the": _truncate,
    "is missing": lambda step: next(step.rglob("d/*")).unlink(),
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "manifest cannot be read": lambda step: (step / "manifest.json").write_text("{"),
    "lists no files": lambda step: (step / "manifest.json").write_text('{"files": {}}'),
    "\0 is missing": lambda step: (step / "manifest.json").write_text('{"files": {"a\\u0000": {"size": 1}}}'),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damage_falls_back_and_the_step_can_be_saved_again(tmp_path, rejections, reason):
    _small_run(tmp_path, [3, 4, 5]).close()
    DAMAGES[reason](tmp_path / "step_000005")
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_good(rejections) == 4
    assert list(rejections) == [5] and reason in rejections[5]
    with pytest.raises(checkpoint.CheckpointError, match="not good"):
        checkpoints.host(5)
    checkpoints.save(5, {"w": jnp.full((16,), 5.0)}, {"position": 5})
    assert checkpoints.latest_good() == 5 and _value(checkpoints, 5) == 5
    assert checkpoints.steps() == [4, 5]


def test_a_rejected_step_never_counts_among_those_kept(tmp_path):
    _small_run(tmp_path, [3, 4, 9]).close()
    next((tmp_path / "step_000009").rglob("d/*")).unlink()
    checkpoints = checkpoint.Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest_good() == 4
    checkpoints.save(5, {"w": jnp.full((16,), 5.0)}, {"position": 5})
    checkpoints.wait()
    assert checkpoints.steps() == [4, 5]


def test_nothing_good_is_an_error_that_says_what_was_found(tmp_path):
    with pytest.raises(ValueError, match="run directory"):
        checkpoint.Checkpoints.open(tmp_path / "absent")
    with pytest.raises(ValueError, match="no step_"):
        checkpoint.Checkpoints.open(tmp_path)
    assert checkpoint.Checkpoints(tmp_path, keep=1).latest_good() is None
    _small_run(tmp_path, [5])
    (tmp_path / "step_000005" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="step 5: it has no manifest"):
        checkpoint.Checkpoints.open(tmp_path)


def test_a_mismatch_lists_every_path_at_once(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path, keep=1)
    same = jnp.ones((2, 3))
    saved.save(1, {"same": same, "extra": same, "shape": same, "dtype": same, "nowhere": same}, {})
    wanted = _abstract({"same": same, "missing": same, "shape": same.T, "dtype": same.astype(jnp.bfloat16)}, _single())
    wanted["nowhere"] = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    with pytest.raises(ValueError) as raised:
        saved.restore(1, wanted)
    assert str(raised.value).splitlines()[1:] == [
        "  dtype: saved as float32, needed bfloat16",
        "  extra: in the checkpoint, but not needed",
        "  missing: needed, but not in the checkpoint",
        "  nowhere: given without a sharding",
        "  shape: saved with shape (2, 3), needed (3, 2)",
    ]
    with pytest.raises(checkpoint.CheckpointError, match=r"holds steps \[1\]"):
        saved.restore(2, wanted)


@pytest.mark.parametrize("host", [{"a": (1, 2)}, {"a": {1: 2}}, {"a": float("nan")}, {"a": np.float32(1)}, {1: 2}])
def test_host_values_that_json_would_change_are_refused(tmp_path, host):
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.Checkpoints(tmp_path, keep=1).save(1, {"w": jnp.ones(1)}, host)
    with pytest.raises(ValueError, match="non-empty"):
        checkpoint.Checkpoints(tmp_path, keep=1).save(1, {"w": jnp.ones((0, 3))}, {})


def test_a_directory_that_is_gone_surfaces_by_the_next_wait_with_its_path(tmp_path):
    checkpoints = _small_run(tmp_path / "run", [1])
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(checkpoint.CheckpointError, match="run/step_000002"):
        checkpoints.save(2, {"w": jnp.ones(16)}, {})
        checkpoints.wait()
    with pytest.raises(OSError, match="run"):
        checkpoint.Checkpoints(tmp_path / "run", keep=1)


FULL_DISK = """
import resource, signal, sys
import jax.numpy as jnp, numpy as np
from swerl_jax.learn import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes past the limit now fail as on a full disk
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=3)
checkpoints.save(1, {"w": jnp.ones(16)}, {})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
weights = np.random.default_rng(0).standard_normal(1_000_000)
try:
    checkpoints.save(2, {"w": jnp.asarray(weights)}, {})
    checkpoints.wait()
except checkpoint.CheckpointError as error:
    assert "step_000002" in str(error), error
    print("named", checkpoints.latest_good())
"""


def test_a_full_disk_names_the_path_and_leaves_the_good_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["named", "1"], done.stderr
    assert checkpoint.Checkpoints(tmp_path, keep=3).steps() == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


SAVER = """
import sys
import jax.numpy as jnp
from swerl_jax.learn import checkpoint
checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=2)
step = checkpoints.latest_good() or 0
print("from", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, {f"w{i}": jnp.full((200, 300), step, jnp.float32) for i in range(8)}, {"position": step})
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_killed_in_mid_save_resumes_from_a_whole_step(tmp_path, seed):
    rng = random.Random(seed)
    reached = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", SAVER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert int(child.stdout.readline().split()[1]) == reached
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        started = [int(line) for line in child.communicate()[0].split()] or [reached + 1]
        reader = _reader_or_none(tmp_path)
        newest = reader.newest if reader else 0
        # Saves are sequential: when one has started, the one before it is whole.
        assert newest >= max(reached, started[-1] - 1)
        if reader:
            abstract = {
                f"w{i}": jax.ShapeDtypeStruct((200, 300), jnp.float32, sharding=_single()) for i in range(8)
            }
            arrays, host = reader.restore(newest, abstract)
            assert host == {"position": newest}
            assert all((np.asarray(array) == newest).all() for array in arrays.values())
        reached = newest
    writer = checkpoint.Checkpoints(tmp_path, keep=2)
    assert all(path.name.startswith("step_") for path in tmp_path.iterdir())
    assert writer.latest_good() == reached


def _reader_or_none(directory):
    try:
        return checkpoint.Checkpoints.open(directory)
    except ValueError:
        return None


def test_manifest_lists_sizes_and_digests_of_every_other_file(tmp_path):
    _small_run(tmp_path, [1], asynchronous=False)
    step = tmp_path / "step_000001"
    listed = json.loads((step / "manifest.json").read_text())["files"]
    on_disk = {p.relative_to(step).as_posix(): p.stat().st_size for p in step.rglob("*") if p.is_file()}
    assert on_disk.pop("manifest.json")
    assert {name: entry["size"] for name, entry in listed.items()} == on_disk
    digest = subprocess.run(["sha256sum", step / "host" / "metadata"], capture_output=True, text=True, check=True)
    assert listed["host/metadata"]["sha256"] == digest.stdout.split()[0]
