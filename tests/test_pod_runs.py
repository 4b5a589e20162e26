"""Whole runs on several processes: stopped at any place, killed and started again, gone on with by other processes."""

import json
import shutil
import signal
import subprocess
import time

import joined
import numpy as np
import paced
import psutil
import pytest
import small
from launching import LAUNCH

from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.metrics import read_metrics

pytestmark = pytest.mark.slow
PATIENCE_S = 900  # the machine may be busy
GRACE_S = 25  # checkpoints.grace_s


class Runs:
    """Runs in `directory`, one after another or side by side; what one compiles is there for the next."""

    def __init__(self, folder, *arguments):
        self.directory, self.marks, self._data, self._arguments = folder / "run", folder / "marks", folder / "data", arguments
        self._started = []
        small.write_examples(self._data)

    def command(self, address, rank, count, *arguments):
        """Of process `rank` of so many."""
        return small.command(
            f"--config=tests/paced.py:{self._data}", f"--workdir={self.directory}", "--config.rl.minibatches=1",
            "--config.answer.max_tokens=32", "--config.engine.ticks=16", "--config.rl.row_tokens=(128,)", "--config.eval.examples=2",
            "--config.log.tensorboard=False", "--config.optimizer.max_skipped=1000",
            f"--config.distributed.coordinator={address if count > 1 else 'none'}", f"--config.distributed.processes={count}",
            f"--config.distributed.process={rank}", f"--config.distributed.heartbeat_s={joined.HEARTBEAT_S}",
            *self._arguments, *arguments)

    def spawn(self, command, devices=1, places=()):
        """A process with so many devices that can be met at these places."""
        compiled = {name: value for name, value in small.environment(self._data / "compilations").items() if name.startswith("JAX_")}
        environment = joined.environment(devices, **compiled, **paced.environment(self.marks, *places))
        self._started.append(subprocess.Popen(command, cwd=small.ROOT, env=environment, stdout=subprocess.PIPE,
                                              stderr=subprocess.STDOUT, text=True))
        return self._started[-1]

    def start(self, count, *arguments, devices=1, places=((), ())):
        """All processes of a run; `places` of the first two."""
        address = joined.free_address()
        return [self.spawn(self.command(address, rank, count, *arguments), devices, places[rank]) for rank in range(count)]

    def finish(self, count, *arguments, devices=1):
        """Runs them to their end; returns what each printed."""
        started = self.start(count, *arguments, devices=devices)
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
        assert [process.returncode for process in started] == [0] * count, "\n".join(outputs)
        return outputs

    def wait_at(self, place):
        """Until a process is there."""
        until = time.monotonic() + PATIENCE_S
        while not (self.marks / place).exists():
            ended = [process for process in self._started[-2:] if process.poll() is not None]
            assert not ended, ended[0].communicate()[0]
            assert time.monotonic() < until, f"nobody came to {place}"
            time.sleep(0.02)

    def lines(self):
        """Of metrics.jsonl by step; each is there once."""
        lines = read_metrics(self.directory / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(lines[0]["step"], lines[0]["step"] + len(lines)))
        return {line["step"]: line for line in lines}

    def cut(self, step):
        """As if the processes had died after `step`."""
        for path in (self.directory / "checkpoints").iterdir():
            if int(path.name.removeprefix("step_")) > step:
                shutil.rmtree(path)
        (self.directory / "table.md").unlink()

    def end(self):
        for process in self._started:
            if process.poll() is None:
                for child in (*psutil.Process(process.pid).children(recursive=True), process):
                    child.kill()
                process.communicate()


@pytest.fixture(name="runs")
def fixture_runs(tmp_path):
    """Makes Runs, whose processes end with the test."""
    made = []
    yield lambda *arguments: made.append(Runs(tmp_path, *arguments)) or made[-1]
    for one in made:
        one.end()


def test_a_signal_to_any_process_stops_all_where_they_are(runs):
    """In turn: to process 0, whose engine samples; to 1, while a team samples that 0 leads; to 1, while it evaluates.

    What was under way is abandoned at once, all save the last finished step, and the next ones go on from it.
    """
    run, resume = runs("--config.phases=('rl',)", "--config.rl.steps=100", "--config.checkpoints.every_steps=1000"), []
    for place, slow, told, together in (("train:1", 0, 0, 1), ("train:2", 0, 1, 2), ("eval:3", 1, 1, 1)):
        step, places = int(place[-1]), [(), ()]
        places[slow] = place,
        started = run.start(2, f"--config.engine.devices={together}", *resume, places=places)
        run.wait_at(place)
        started[told].send_signal(signal.SIGTERM)
        told_s = time.monotonic()
        outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
        assert time.monotonic() - told_s < GRACE_S + joined.HEARTBEAT_S, "leaving the others comes after saving"
        assert f"SIGTERM: saving the last finished step, at most {GRACE_S} s" in outputs[told]
        assert "another process was told to stop" in outputs[1 - told]
        assert Checkpoints.open(run.directory).newest == step
        assert max(run.lines()) == step - (place == "eval:3")  # its line waits for the evaluation
        assert not resume or f"resuming after step {step - 1}" in outputs[0]
        resume = ["--resume"]
    assert max(line["logp_diff/max"] for line in run.lines().values() if "logp_diff/max" in line) < 1e-4


def test_a_run_whose_processes_are_killed_is_restarted_to_its_end(runs):
    """launch/restart.sh on two hosts. The first trainer is killed in an update, then the second one while the first samples."""
    run = runs("--config.phases=('rl',)", "--config.rl.steps=4", "--config.eval.every_steps=0",
               "--config.checkpoints.every_steps=1", "--config.engine.devices=1")
    address, places = joined.free_address(), ("learn:1", "train:2")
    # The second host waits 6 s, and then 12, in which its peer must miss its heartbeats.
    hosts = [run.spawn(["bash", str(LAUNCH / "restart.sh"), f"--workdir={run.directory}", f"--first_wait_s={1 + 5 * rank}", "--",
                        *run.command(address, rank, 2)], places=places if rank == 0 else ()) for rank in range(2)]
    for place, killed in zip(places, (0, 1)):
        run.wait_at(place)
        trainers = [trainer(host) for host in hosts]
        trainers[killed].kill()
        killed_s = time.monotonic()
        psutil.wait_procs([trainers[1 - killed]], timeout=PATIENCE_S)
        assert time.monotonic() - killed_s < joined.HEARTBEAT_S + 5
    outputs = [host.communicate(timeout=PATIENCE_S)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(outputs)
    for text in outputs:
        assert text.count("it was killed") == text.count("jax's runtime aborted this process") == 1
        assert text.count("JAX distributed service detected fatal errors") == 1 and "launch: finished" in text
    assert "heartbeat" in outputs[0], outputs[0]
    assert sorted(run.lines()) == [0, 1, 2, 3, 4] and Checkpoints.open(run.directory).newest == 4
    assert (run.directory / "table.md").exists()


def trainer(host):
    """The process that a restart.sh runs."""
    return next(child for child in psutil.Process(host.pid).children() if "swerl_jax.main" in child.cmdline())


def test_other_processes_on_another_mesh_go_on_with_the_same_data_and_losses(runs):
    """Two processes of two devices; from step 1 one of two, from step 3 two of one. Supervised steps and then sampled ones."""
    run = runs("--config.sft.steps=4", "--config.rl.steps=2", "--config.eval.every_steps=0", "--config.checkpoints.every_steps=1",
               "--config.checkpoints.keep=9", "--config.engine.devices=1", "--config.answer.max_tokens=160",
               "--config.engine.ticks=160", "--config.rl.row_tokens=(640,)")
    run.finish(2, devices=2)
    wanted = seen(run)
    assert len({line["loss"] for line in wanted[0].values()}) == 6
    for step, count, devices, tensor in ((1, 1, 2, 2), (3, 2, 1, 1)):
        run.cut(step)
        outputs = run.finish(count, "--resume", f"--config.mesh.tensor={tensor}", devices=devices)
        assert f"resuming after step {step}" in outputs[0]
        found = seen(run)
        assert found[1] == wanted[1]
        for number, line in wanted[0].items():
            one = found[0][number]
            assert one["data/position"] == line["data/position"]
            assert number <= step or one["seconds/step"] != line["seconds/step"], "it was taken anew"
            np.testing.assert_allclose(one["loss"], line["loss"], rtol=1e-5, atol=0 if number <= 4 else 1e-5)
        wanted = found


def seen(run):
    """(lines of metrics.jsonl by step, the examples and answers of each sampled step)."""
    drawn = {path.name: [(row["example_id"], row.get("sample"), row.get("output")) for row in map(json.loads, path.open())]
             for path in sorted((run.directory / "rollouts").iterdir())}
    assert len(drawn) == 2
    return run.lines(), drawn


def test_a_wrong_setting_of_one_process_is_told_by_all(runs):
    run, address = runs(), joined.free_address()
    processes = [run.spawn(run.command(address, rank, 2, f"--config.rl.samples={2 + rank}")) for rank in range(2)]
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], "\n".join(outputs)
    assert all("the processes have different settings: rl.samples; give all of them the same" in text for text in outputs)
    assert not run.directory.exists()
