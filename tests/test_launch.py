"""The launch scripts' dry runs: the exact commands, what is refused, and shellcheck."""

import json
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from launching import LAUNCH, ROOT, bare_path, launch, printed, refused

NASTY = ["plain", "", "two words", "it's", 'a "b"', "$HOME `id` $(id)", "a\\b", "&;|<>*?[]{}~#!", "('a b.jsonl',)", "ü", "-x"]
SLICE = ("--name=swerl", "--project=p", "--zone=z")
TRAINER = ("--config=configs/70b.py", "--workdir=/b/run")
VOLUME = "--volume=files:/b"  # where a pod finds the run's directory
GCLOUD = ["gcloud", "compute", "tpus"]

# Topology, --chips_per_host of GKE → hosts a slice, slices, chips a host, machine type; by Google's tables
# (cloud.google.com/tpu/docs/v5p, v5e, v6e; cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
ON_GKE = [
    ("v5p:2x2x1", "", 1, 1, 4, "ct5p-hightpu-4t"),
    ("v5p:2x2x2", "", 2, 1, 4, "ct5p-hightpu-4t"),
    ("v5p:4x4x8", "", 32, 1, 4, "ct5p-hightpu-4t"),
    ("v5p:8x8x8:x2", "", 128, 2, 4, "ct5p-hightpu-4t"),
    ("v5e:1x1", "", 1, 1, 1, "ct5lp-hightpu-1t"),
    ("v5e:2x2", "", 1, 1, 4, "ct5lp-hightpu-4t"),
    ("v5e:2x4", "", 1, 1, 8, "ct5lp-hightpu-8t"),
    ("v5e:2x4", "4", 2, 1, 4, "ct5lp-hightpu-4t"),
    ("v5e:4x4", "", 4, 1, 4, "ct5lp-hightpu-4t"),
    ("v6e:2x4", "8", 1, 1, 8, "ct6e-standard-8t"),
    ("v6e:4x4:x3", "", 4, 3, 4, "ct6e-standard-4t"),
    ("v6e:16x16", "", 64, 1, 4, "ct6e-standard-4t"),
]
ON_TPU_VM = {  # topology → accelerator type and runtime version; v5p counts two TensorCores a chip
    "v5p:2x2x1": ("v5p-8", "v2-alpha-tpuv5"), "v5p:4x4x4": ("v5p-128", "v2-alpha-tpuv5"),
    "v5p:8x8x16": ("v5p-2048", "v2-alpha-tpuv5"), "v5e:2x4": ("v5litepod-8", "v2-alpha-tpuv5-lite"),
    "v5e:4x4": ("v5litepod-16", "v2-alpha-tpuv5-lite"), "v6e:16x16": ("v6e-256", "v2-alpha-tpuv6e"),
}
GKE_NAMES = {"v5p": "tpu-v5p-slice", "v5e": "tpu-v5-lite-podslice", "v6e": "tpu-v6e-slice"}


@pytest.fixture(name="path", scope="module")
def fixture_path(tmp_path_factory):
    return bare_path(tmp_path_factory.mktemp("launch") / "bin")


def tpu_vm(command, *options, path, trainer=TRAINER):
    """The words of each command that a dry run prints."""
    after = ("--", *trainer) if command in ("run", "start", "resume") else ()
    return printed(launch("tpu_vm.sh", command, *SLICE, *options, "--dry_run", *after, path=path))


def jobset(*options, path, trainer=TRAINER, command="submit"):
    """(the commands' lines, the JobSet) of a dry run."""
    result = launch("gke.sh", command, "--name=swerl", "--image=repo/image:1", VOLUME, *options, "--dry_run", "--", *trainer, path=path)
    assert result.returncode == 0, result.stderr
    commands, text = result.stdout.split(" <<'EOF'\n")
    assert text.endswith("\nEOF\n")
    return commands.splitlines(), yaml.safe_load(text.removesuffix("\nEOF\n"))


def pod_of(job_set):
    job = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job, job["template"]["spec"], job["template"]["spec"]["containers"][0]


def expanded(text):
    """As Kubernetes reads an argument in which no variable is named: $$ is $."""
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", text)
    return text.replace("$$", "$")


# -- quoting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_quoted_words_are_read_back_as_they_were(shell):
    program = f'DRY_RUN=""; source {shlex.quote(str(LAUNCH / "options.sh"))}; quoted "$@"'
    line = subprocess.run(["bash", "-c", program, "x", *NASTY], capture_output=True, text=True, check=True).stdout
    assert shlex.split(line) == NASTY
    again = subprocess.run([shell, "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True).stdout
    assert again.split("\0")[:-1] == NASTY


def test_a_workers_shell_reads_the_trainers_arguments_back(path, tmp_path):
    worker = tmp_path / "swerl_jax" / "launch" / "worker.sh"
    worker.parent.mkdir(parents=True)
    worker.write_text('printf "%s\\0" "$@"\n')
    trainer = (*TRAINER, *(f"--config.name={word}" for word in NASTY))
    [words] = tpu_vm("start", "--topology=v5e:4x4", "--env=A=b 'c' $d", path=path, trainer=trainer)
    [command] = [word.removeprefix("--command=") for word in words if word.startswith("--command=")]
    seen = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert seen.split("\0")[:-1] == ["start", "--restarts=10", "--env=A=b 'c' $d", "--", *trainer]


def test_a_pod_gets_the_trainers_arguments_as_they_are(path):
    trainer = (*TRAINER, *(f"--config.name={word}" for word in NASTY), "--config.name=@IMAGE@ a\nb\tc")
    _, job_set = jobset("--topology=v5p:4x4x4", "--env=A=b \"c\" $(D) & é", path=path, trainer=trainer)
    container = pod_of(job_set)[2]
    words = [expanded(word) for word in container["args"]]
    assert words == ["--workdir=/b/run", "--restarts=0", "--",
                     "python", "-m", "swerl_jax.main", *trainer]
    assert {"name": "A", "value": "b \"c\" $$(D) & é"} in container["env"]


def test_a_slurm_job_runs_the_trainers_arguments(path):
    trainer = ("--config=configs/8b.py", "--workdir", "/shared/a b", *(f"--config.name={word}" for word in NASTY))
    [words] = printed(launch("gpu.sh", "--slurm", "--nodes=2", "--gpus_per_node=4", "--sbatch_flag=--time=4:00:00",
                             "--env=A=b c", "--dry_run", "--", *trainer, path=path))
    python = str(ROOT / ".venv/bin/python")
    assert words[:-1] == ["sbatch", "--job-name=swerl_jax", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4",
                          "--requeue", "--open-mode=append", "--signal=B:TERM@120", f"--chdir={ROOT}", "--time=4:00:00"]
    assert shlex.split(words[-1].removeprefix("--wrap=")) == [
        "exec", "env", "REQUEUE_WHEN_STOPPED=1", "bash", f"{LAUNCH}/restart.sh", "--workdir=/shared/a b", "--restarts=10",
        "--", "srun", "--kill-on-bad-exit=1", "env", "JAX_LOCAL_DEVICE_IDS=0,1,2,3", "A=b c",
        python, "-m", "swerl_jax.main", *trainer]


# -- the commands ------------------------------------------------------------------------------------------------------


def test_a_tpu_vm_run_is_these_commands(path):
    where = ["--project=p", "--zone=z"]
    start = "bash swerl_jax/launch/worker.sh start --restarts=3 -- --config=configs/70b.py --workdir=/b/run"
    unpack = ("mkdir -p swerl_jax && tar -xzf swerl_jax.tar.gz -C swerl_jax && "
              "bash swerl_jax/launch/worker.sh install --extra=tpu,gcs")

    def ssh(node, worker, command):
        return [*GCLOUD, "tpu-vm", "ssh", node, *where, f"--worker={worker}", "--internal-ip", f"--command={command}"]

    def copy(node):
        return [*GCLOUD, "tpu-vm", "scp", "/tmp/swerl_jax.tar.gz", f"{node}:swerl_jax.tar.gz", *where, "--worker=all",
                "--internal-ip"]

    describe = [*GCLOUD, "queued-resources", "describe", "swerl", "--format=value(state.state)", *where]
    seen = tpu_vm("run", "--topology=v5p:4x4x8:x2", "--spot", "--create_flag=--network=my net", "--ssh_flag=--internal-ip",
                  "--restarts=3", "--delete_after", path=path)
    assert seen[2][0] == "tar" and "--exclude=./.git" in seen[2] and seen[2][-3:] == ["-czf", "/tmp/swerl_jax.tar.gz", "."]
    assert seen[:2] + seen[3:] == [
        [*GCLOUD, "queued-resources", "create", "swerl", "--accelerator-type=v5p-256", "--runtime-version=v2-alpha-tpuv5",
         "--node-count=2", "--node-prefix=swerl", "--spot", "--network=my net", *where],
        describe,
        copy("swerl-0"), ssh("swerl-0", "all", unpack), copy("swerl-1"), ssh("swerl-1", "all", unpack),
        ssh("swerl-0", "all", start), ssh("swerl-1", "all", start),
        ssh("swerl-0", "0", "bash swerl_jax/launch/worker.sh follow"),
        describe, *(ssh(f"swerl-{i}", "all", "bash swerl_jax/launch/worker.sh status") for i in range(2)),
        [*GCLOUD, "queued-resources", "delete", "swerl", "--force", "--quiet", *where],
    ]


@pytest.mark.parametrize("topology", ON_TPU_VM)
def test_the_accelerator_type_and_runtime_of_a_topology(path, topology):
    accelerator, runtime = ON_TPU_VM[topology]
    assert tpu_vm("create", f"--topology={topology}", "--reserved", path=path) == [
        [*GCLOUD, "queued-resources", "create", "swerl", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}",
         "--node-id=swerl", "--reserved", "--project=p", "--zone=z"]]


def test_workers_are_set_up_before_the_installation(path):
    words = tpu_vm("install", "--topology=v5e:2x4", "--setup=sudo mount -t nfs 10.0.0.2:/a /mnt/shared", "--extra=tpu",
                   path=path)
    assert words[-1][-1] == ("--command=sudo mount -t nfs 10.0.0.2:/a /mnt/shared && mkdir -p swerl_jax && "
                             "tar -xzf swerl_jax.tar.gz -C swerl_jax && bash swerl_jax/launch/worker.sh install --extra=tpu")


def test_other_sub_commands_of_tpu_vm(path):
    node = [*GCLOUD, "tpu-vm", "ssh", "swerl", "--project=p", "--zone=z"]
    small = "--topology=v5e:2x4"
    assert tpu_vm("log", small, path=path) == [[*node, "--worker=0", "--command=bash swerl_jax/launch/worker.sh follow"]]
    assert tpu_vm("stop", small, path=path) == [[*node, "--worker=all", "--command=bash swerl_jax/launch/worker.sh stop"]]
    assert tpu_vm("delete", path=path) == [
        [*GCLOUD, "queued-resources", "delete", "swerl", "--force", "--quiet", "--project=p", "--zone=z"]]
    [*_, follow, describe, status] = tpu_vm("resume", small, path=path)
    assert (follow[5], describe[4], status[-1]) == ("swerl", "describe", "--command=bash swerl_jax/launch/worker.sh status")
    resumed = [words[-1] for words in tpu_vm("resume", small, path=path) if "start" in words[-1]]
    assert resumed == ["--command=bash swerl_jax/launch/worker.sh start --restarts=10 --resume -- " + " ".join(TRAINER)]


@pytest.mark.parametrize("topology, asked, hosts, slices, chips, machine", ON_GKE)
def test_a_jobset_has_a_pod_for_each_host(path, topology, asked, hosts, slices, chips, machine):
    options = [f"--topology={topology}", *([f"--chips_per_host={asked}"] if asked else [])]
    commands, job_set = jobset(*options, path=path)
    assert commands == ["kubectl create --filename=- --namespace=default"]
    job, pod, container = pod_of(job_set)
    version, shape = topology.split(":")[:2]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (hosts, hosts, 0)
    assert job_set["spec"]["replicatedJobs"][0]["replicas"] == slices
    assert container["resources"] == {"limits": {"google.com/tpu": chips}}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-tpu-accelerator": GKE_NAMES[version],
                                   "cloud.google.com/gke-tpu-topology": shape}
    assert hosts * chips == math.prod(map(int, shape.split("x")))
    pools = printed(launch("gke.sh", "pool", "--name=swerl", "--cluster=c", "--location=l", *options, "--dry_run", path=path))
    assert pools == [["gcloud", "container", "node-pools", "create", f"swerl-{i}", "--cluster=c", "--location=l",
                      f"--machine-type={machine}", f"--tpu-topology={shape}", f"--num-nodes={hosts}"] for i in range(slices)]


def test_a_jobsets_restarts_and_options(path):
    commands, job_set = jobset(
        "--topology=v6e:4x4:x2", "--restarts=4", "--grace_s=120", "--spot", "--namespace=team-a", "--service_account=trainer",
        "--label=kueue.x-k8s.io/queue-name=queue", "--node_selector=cloud.google.com/reservation-name=r: x", path=path,
        command="resume")
    assert commands == ["kubectl delete jobset swerl --ignore-not-found --wait --namespace=team-a",
                        "kubectl create --filename=- --namespace=team-a"]
    job, pod, container = pod_of(job_set)
    assert job_set["metadata"] == {
        "name": "swerl", "namespace": "team-a", "labels": {"kueue.x-k8s.io/queue-name": "queue"},
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}}
    assert job_set["spec"]["failurePolicy"] == {
        "maxRestarts": 4, "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]}
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]}}]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"], pod["serviceAccountName"]) == ("Never", 120, "trainer")
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/reservation-name"] == "r: x"
    assert container["args"][:4] == ["--workdir=/b/run", "--restarts=0", "--resume", "--"]
    attempt = {"fieldRef": {"fieldPath": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"}}
    assert container["env"] == [{"name": "JOBSET_RESTART_ATTEMPT", "valueFrom": attempt}]


def test_a_jobset_mounts_volumes(path):
    trainer = ("--config=c", "--workdir=/b/runs/x")
    _, job_set = jobset("--topology=v5e:4x4", "--volume=more:/mnt: c", path=path, trainer=trainer)
    _, pod, container = pod_of(job_set)
    assert container["volumeMounts"] == [{"name": "files", "mountPath": "/b"}, {"name": "more", "mountPath": "/mnt: c"}]
    assert pod["volumes"] == [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in ("files", "more")]
    words = ["submit", "--name=swerl", "--image=i", "--topology=v5e:4x4", "--dry_run"]
    refused(launch("gke.sh", *words, "--volume=files:/mnt/other", "--", *trainer, path=path), "--volume=CLAIM:/PATH")
    refused(launch("gke.sh", *words, VOLUME, "--volume=files", "--", *TRAINER, path=path), "--volume=files is not CLAIM:/PATH")


def test_other_sub_commands_of_gke(path):
    def words(*arguments):
        return printed(launch("gke.sh", *arguments, "--dry_run", path=path))

    assert words("build", "--image=repo/image:1") == [
        ["docker", "build", f"--file={LAUNCH}/Dockerfile", "--build-arg=EXTRA=tpu,gcs", "--tag=repo/image:1", f"{LAUNCH}/.."],
        ["docker", "push", "repo/image:1"]]
    first = "jobset.sigs.k8s.io/jobset-name=swerl,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    assert words("log", "--name=swerl") == [
        ["kubectl", "logs", "--follow", "--tail=-1", f"--selector={first}", "--namespace=default"]]
    assert words("stop", "--name=swerl") == [["kubectl", "delete", "jobset", "swerl", "--namespace=default"]]


def test_one_gpu_machine(path):
    python = str(ROOT / ".venv/bin/python")
    result = launch("gpu.sh", "--resume", "--dry_run", "--", "--config=c", "--workdir=a b", path=path)
    assert printed(result) == [
        ["bash", f"{LAUNCH}/restart.sh", "--workdir=a b", "--restarts=10", "--resume", "--",
         python, "-m", "swerl_jax.main", "--config=c", "--workdir=a b"]]


# -- what is refused ---------------------------------------------------------------------------------------------------

COMPLETE = {
    "tpu_vm.sh": ["run", *SLICE, "--topology=v5e:4x4", "--dry_run", "--", *TRAINER],
    "gke.sh": ["submit", "--name=swerl", "--image=i", "--topology=v5e:4x4", VOLUME, "--dry_run", "--", *TRAINER],
    "gpu.sh": ["--dry_run", "--", *TRAINER],
}


@pytest.mark.parametrize("script", COMPLETE)
def test_each_required_argument_is_asked_for(path, script):
    words = COMPLETE[script]
    assert launch(script, *words, path=path).returncode == 0
    required = [word for word in words if "=" in word]
    for missing in required:
        option = missing.partition("=")[0]
        refused(launch(script, *(word for word in words if word != missing), path=path), option.removeprefix("--"))


@pytest.mark.parametrize("script", COMPLETE)
def test_a_run_is_in_a_directory_or_in_a_bucket_of_google(path, script):
    words = [word.replace("--workdir=/b", "--workdir=gs://b") for word in COMPLETE[script] if word != VOLUME]
    result = launch(script, *words, path=path)
    assert result.returncode == 0 and "--workdir=gs://b/run" in result.stdout and "must share" not in result.stderr, result.stderr
    words = [word.replace("gs://", "s3://") for word in words]
    refused(launch(script, *words, path=path), "--workdir=s3://b/run is no place for a run", "or gs://BUCKET/RUN")


@pytest.mark.parametrize("script", COMPLETE)
@pytest.mark.parametrize("extra, text", [
    ("--nmae=x", "--nmae is not an option"), ("--restarts=many", "--restarts is 'many'; needed is a whole number"),
    ("stray", "unexpected 'stray'"), ("--restarts", "--restarts needs a value"),
    ("--env=novalue", "--env=novalue is not KEY=VALUE"), ("--dry_run=1", "is not an option that takes a value"),
])
def test_wrong_options_are_named(path, script, extra, text):
    words = list(COMPLETE[script])
    words.insert(words.index("--dry_run"), extra)
    refused(launch(script, *words, path=path), text)


@pytest.mark.parametrize("topology, text", [
    ("v9:2x2", "v5p, v5e and v6e"), ("v5p", "its shapes are 2x2x1"), ("v5p:4x4", "its shapes are 2x2x1"),
    ("v5p:8x4x4", "A <= B <= C"), ("v5p:4x4x6", "multiples of 4"), ("v5p:0x4x4", "A <= B <= C"), ("v5p:4x4x4x4", "A <= B"),
    ("v5p:axbxc", "its shapes are"), ("v6e:4x2", "its shapes are 1x1 2x2 2x4"), ("v5e:32x32", "its shapes are 1x1"),
    ("v6e:4x4:2", "for example v6e:4x4:x2"), ("v6e:4x4:x0", "wrong number of slices"), ("v5e:2x2:x2", "several hosts in each"),
])
def test_wrong_topologies_are_answered_with_right_ones(path, topology, text):
    refused(launch("tpu_vm.sh", "create", *SLICE, f"--topology={topology}", "--dry_run", path=path), text)


def test_other_refusals(path):
    submit = ["submit", "--name=swerl", "--image=i", "--topology=v5e:4x4", VOLUME, "--dry_run"]
    refused(launch("gke.sh", *submit, "--", "--config=c", "--workdir=runs/x", path=path), "--volume=CLAIM:/PATH")
    refused(launch("gke.sh", *submit, "--name=No_Good", "--", *TRAINER, path=path), "--name=No_Good is not a name")
    refused(launch("gke.sh", *submit, "--chips_per_host=8", "--", *TRAINER, path=path), "has 4 chips a host, not 8")
    refused(launch("gke.sh", *submit, "--", *TRAINER, "--resume", path=path), "--resume is this script's to give")
    refused(launch("gke.sh", "start", path=path), "'start' is not a sub-command")
    refused(launch("gpu.sh", "--nodes=2", "--dry_run", "--", *TRAINER, path=path), "--nodes=2 needs --slurm")


@pytest.mark.parametrize("script, tool", [("tpu_vm.sh", "gcloud"), ("gke.sh", "kubectl")])
def test_a_missing_tool_is_named_with_where_to_get_it(path, script, tool):
    words = [word for word in COMPLETE[script] if word != "--dry_run"]
    refused(launch(script, *words, path=path), f"{tool} is not installed", "https://", "--dry_run")


# -- the files ---------------------------------------------------------------------------------------------------------

SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh"))


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh", "gpu.sh", "restart.sh", "worker.sh"])
def test_help_is_the_first_comment(path, script):
    text = launch(script, "--help", path=path).stdout
    comment = [line.removeprefix("#").removeprefix(" ") for line in (LAUNCH / script).read_text().splitlines()[1:]]
    assert text.splitlines() == comment[:len(text.splitlines())] and f"bash launch/{script}" in text and "--dry_run" in text
    assert not comment[len(text.splitlines())].startswith("#")


def test_the_scripts_are_shellcheck_clean():
    places = str(pathlib.Path(sys.executable).parent)
    program = shutil.which("shellcheck", path=places) or shutil.which("shellcheck")
    if program is None:
        pytest.skip("needs shellcheck: pip install -e .[test]")
    files = [*(LAUNCH / name for name in SCRIPTS), ROOT / "tests/run.sh", ROOT / ".ci/run"]
    found = subprocess.run([program, "--format=json", *files], capture_output=True, text=True, check=False, cwd=ROOT)
    assert json.loads(found.stdout) == []


def test_the_page_shows_commands_that_work(path):
    text = (ROOT / "docs/tpu.md").read_text(encoding="utf-8")
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines() if line.startswith("bash launch/")]
    assert len(commands) >= 10
    for words in commands:
        place = words.index("--") if "--" in words else len(words)
        result = launch(words[1].removeprefix("launch/"), *words[2:place], "--dry_run", *words[place:], path=path)
        assert result.returncode == 0, (words, result.stderr)
