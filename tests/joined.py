"""Real processes on this machine, joined by `jax.distributed`, each with fake devices: what their tests share."""

import os
import pathlib
import socket
import subprocess
import sys

import jax

from swerl_jax.learn import processes

ROOT = pathlib.Path(__file__).resolve().parents[1]
HEARTBEAT_S = 10


def free_address():
    """Of this machine, with a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def environment(devices, **variables):
    """Of a process with so many fake devices."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", **variables}


def start(file, part, directory, address, rank, count, devices):
    """One of `count` processes that run the function of a test file named `part`, which ends with `main(globals())`."""
    return subprocess.Popen([sys.executable, file, part, str(directory), address, str(rank), str(count)],
                            env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def start_all(file, part, directory, count, devices):
    """All of them."""
    address = free_address()
    return [start(file, part, directory, address, rank, count, devices) for rank in range(count)]


def run(file, part, directory, count, devices):
    """Runs them to their end; none may fail. Returns what each printed."""
    started = start_all(file, part, directory, count, devices)
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, "\n".join(outputs)
    return outputs


def main(names):
    """The other side of `start`: calls part(directory, processes)."""
    part, directory, address, rank, count = sys.argv[1:]
    settings = processes.JoinSettings(address, int(count), int(rank), HEARTBEAT_S, 60.0)
    names[part](pathlib.Path(directory), processes.join(settings))
    assert jax.process_count() == int(count)
