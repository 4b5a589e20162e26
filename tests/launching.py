"""What the tests of launch/ share: running a script with chosen tools on its PATH, and fakes of those tools."""

import os
import pathlib
import shlex
import shutil
import stat
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
PATIENCE_S = 240  # for what takes a second on an idle machine
# All that the scripts need besides gcloud, kubectl, docker, sbatch and srun.
TOOLS = ("awk", "bash", "cat", "cksum", "cp", "dirname", "env", "grep", "head", "hostname", "mkdir", "nohup", "rm", "sed",
         "setsid", "sh", "sleep", "stat", "tail", "tar", "touch", "tr")


def bare_path(directory):
    """A folder with TOOLS alone, for PATH."""
    directory.mkdir(parents=True)
    for name in TOOLS:
        (directory / name).symlink_to(shutil.which(name))
    return directory


def write_tool(directory, name, text):
    """An executable of that name; a Python program unless the text begins with its own #!."""
    path = directory / name
    path.unlink(missing_ok=True)  # perhaps a link to the real one
    path.write_text(text if text.startswith("#!") else f"#!{sys.executable} -IS\n{text}")  # quick to start
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def launch(script, *arguments, path=None, cwd=None, **environment):
    """Runs one of the scripts to its end; returns the completed process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JOBSET_"))}
    if path is not None:
        kept["PATH"] = str(path)
    environment = kept | {name: str(value) for name, value in environment.items()}
    return subprocess.run(["bash", str(LAUNCH / script), *map(str, arguments)], capture_output=True, text=True, check=False,
                          timeout=PATIENCE_S, cwd=cwd, env=environment)


def printed(result):
    """The commands that a dry run printed, each as its words; comments are left out."""
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")]


def refused(result, *texts):
    """The script ended with 2 and said these."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    for text in texts:
        assert text in result.stderr, result.stderr
    return True
