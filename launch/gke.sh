#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, as a JobSet (launch/gke_jobset.yaml). Runs on a machine of yours that has kubectl:
#   bash launch/gke.sh submit --name=N --topology=v5p:4x4x8 --image=IMAGE -- --config=configs/70b.py --workdir=gs://BUCKET/RUN
# Sub-commands:
#   pool     a node pool for each slice, in a Standard cluster (--cluster=C --location=L, --spot; Autopilot makes its own)
#   build    the image from launch/Dockerfile, and pushes it (--image=REGISTRY/NAME:TAG, --extra=tpu,gcs)
#   submit   begins a run; the trainer's arguments follow --
#   resume   goes on with the run: deletes the JobSet of that name and submits it again, with --resume
#   log      streams the log of the first slice's first host
#   status   the JobSet, its Jobs and pods
#   stop     deletes the JobSet: its pods get SIGTERM and save
# Options:
#   --topology=VERSION:SHAPE[:xSLICES]   v5p:4x4x8, v6e:16x16:x2, v5e:2x4 …
#   --chips_per_host=4        for v5e:2x4 and v6e:2x4, where a host may have 8 (the default) or 4
#   --restarts=10             of all pods together, with growing waits
#   --grace_s=90              between SIGTERM and SIGKILL; more than checkpoints.grace_s. Spot nodes give less: docs/tpu.md
#   --namespace=default  --service_account=default   the latter may read and write --workdir
#   --spot                    on Spot nodes
#   --node_selector=KEY=VALUE, --label=KEY=VALUE, --env=KEY=VALUE   again and again (label: kueue.x-k8s.io/queue-name=QUEUE)
#   --volume=CLAIM:/PATH      a PersistentVolumeClaim (of a file system that many nodes may write) in each pod, again and again
#   --pool_flag=--FLAG=VALUE  pool: more of gcloud's, again and again
#   --dry_run                 print the commands and the filled-in JobSet; needs neither kubectl nor gcloud nor docker
# A cluster needs JobSet 0.6 or newer: jobset.sigs.k8s.io/docs/installation.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/options.sh"
source "$HERE/topology.sh"

NAME="" TOPOLOGY="" IMAGE="" NAMESPACE=default SERVICE_ACCOUNT=default CHIPS_PER_HOST="" RESTARTS=10 GRACE_S=90 EXTRA=tpu,gcs
CLUSTER="" LOCATION="" SPOT="" DRY_RUN="" WORKDIR="" NODE_SELECTOR=() LABEL=() ENV=() VOLUME=() POOL_FLAG=() TRAINER=()
MAX_NAME=40 # a pod's name has at most 63 characters, and JobSet appends to ours

# yaml VALUE: a quoted YAML string.
yaml() {
  local text="${1//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//$'\t'/\\t}"
  printf '"%s"' "${text//$'\n'/\\n}"
}

# verbatim VALUE: the same where Kubernetes expands $(VARIABLE).
verbatim() { yaml "${1//\$/\$\$}"; }

# pairs LIST-ITEM-SEPARATOR KEY=VALUE …: as YAML, one after the other.
pairs() {
  local separator="$1" pair text=""
  shift
  for pair in "$@"; do text="$text${text:+$separator}$(yaml "${pair%%=*}"): $(yaml "${pair#*=}")"; done
  printf '%s' "$text"
}

# fill NAME VALUE: in the template; a placeholder that is a line of its own goes away where the value is empty.
fill() {
  if [[ -z "$2" ]]; then
    TEMPLATE="$(grep -v "^ *@$1@\$" <<< "$TEMPLATE")"
  fi
  TEMPLATE="${TEMPLATE//@$1@/$2}"
}

# fill_lines NAME LINE …: as many lines, each as far in as the placeholder.
fill_lines() {
  local name="$1" indent line text=""
  shift
  indent="$(sed -n "s/^\( *\)@$name@\$/\1/p" <<< "$TEMPLATE")"
  for line in "$@"; do text="$text${text:+$'\n'$indent}$line"; done
  fill "$name" "$text"
}

# The JobSet on standard output; "--resume" goes on with a run.
render() {
  local word setting arguments=() environment=() selectors=() mounts=() volumes=()
  local words=("--workdir=$WORKDIR" --restarts=0 "$@" -- python -m swerl_jax.main "${TRAINER[@]}")
  for word in "${words[@]}"; do arguments+=("- $(verbatim "$word")"); done
  for setting in ${ENV[@]+"${ENV[@]}"}; do
    environment+=("- name: $(yaml "${setting%%=*}")" "  value: $(verbatim "${setting#*=}")")
  done
  for setting in ${NODE_SELECTOR[@]+"${NODE_SELECTOR[@]}"}; do selectors+=("$(pairs "" "$setting")"); done
  for setting in ${VOLUME[@]+"${VOLUME[@]}"}; do
    mounts+=("- name: ${setting%%:*}" "  mountPath: $(yaml "${setting#*:}")")
    volumes+=("- name: ${setting%%:*}" "  persistentVolumeClaim:" "    claimName: ${setting%%:*}")
  done
  [[ -z "$SPOT" ]] || selectors+=('cloud.google.com/gke-spot: "true"')
  TEMPLATE="$(sed '/^#/d' "$HERE/gke_jobset.yaml")"
  fill NAME "$NAME"
  fill NAMESPACE "$NAMESPACE"
  fill LABELS "$(pairs ", " ${LABEL[@]+"${LABEL[@]}"})"
  fill RESTARTS "$RESTARTS"
  fill SLICES "$SLICES"
  fill HOSTS "$HOSTS"
  fill GRACE_S "$GRACE_S"
  fill SERVICE_ACCOUNT "$SERVICE_ACCOUNT"
  fill GKE_ACCELERATOR "$GKE_ACCELERATOR"
  fill SHAPE "$SHAPE"
  fill CHIPS_PER_HOST "$CHIPS_PER_HOST"
  fill IMAGE "$(yaml "$IMAGE")"
  fill_lines NODE_SELECTORS ${selectors[@]+"${selectors[@]}"}
  fill_lines MOUNTS ${mounts[@]+volumeMounts: "${mounts[@]}"}
  fill_lines VOLUMES ${volumes[@]+volumes: "${volumes[@]}"}
  fill_lines ENVIRONMENT ${environment[@]+"${environment[@]}"}
  fill_lines ARGUMENTS "${arguments[@]}" # last: these may hold anything
  printf '%s\n' "$TEMPLATE"
}

cluster() { execute kubectl "$@" "--namespace=$NAMESPACE"; }

submit() {
  if [[ -n "$DRY_RUN" ]]; then
    printf '%s <<'\''EOF'\''\n%s\nEOF\n' "$(cluster create --filename=-)" "$(render "$@")"
  else
    render "$@" | cluster create --filename=-
    say "submitted; now: bash $0 log --name=$NAME --namespace=$NAMESPACE"
  fi
}

resume() {
  cluster delete jobset "$NAME" --ignore-not-found --wait
  submit --resume
}

pool() {
  local i
  for ((i = 0; i < SLICES; i++)); do
    execute gcloud container node-pools create "$NAME-$i" "--cluster=$CLUSTER" "--location=$LOCATION" \
      "--machine-type=$MACHINE_TYPE" "--tpu-topology=$SHAPE" "--num-nodes=$HOSTS" ${SPOT:+--spot} \
      ${POOL_FLAG[@]+"${POOL_FLAG[@]}"}
  done
}

build() {
  execute docker build "--file=$HERE/Dockerfile" "--build-arg=EXTRA=$EXTRA" "--tag=$IMAGE" "$HERE/.."
  execute docker push "$IMAGE"
}

log() {
  cluster logs --follow --tail=-1 "--selector=jobset.sigs.k8s.io/jobset-name=$NAME,$(
    )jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
}

status() { cluster get jobset,job,pod "--selector=jobset.sigs.k8s.io/jobset-name=$NAME"; }

stop() { cluster delete jobset "$NAME"; }

# Numbers and names that go into the JobSet as they are.
check_values() {
  local number pair
  for number in restarts grace_s; do need_number "$number"; done
  for pair in ${NODE_SELECTOR[@]+"${NODE_SELECTOR[@]}"} ${LABEL[@]+"${LABEL[@]}"}; do
    [[ "$pair" == ?*=* ]] || refuse "'$pair' is not KEY=VALUE"
  done
  for pair in ${VOLUME[@]+"${VOLUME[@]}"}; do
    [[ "$pair" == ?*:/?* ]] || refuse "--volume=$pair is not CLAIM:/PATH"
    check_label volume "${pair%%:*}"
  done
  check_environment
  check_label name "$NAME"
  check_label namespace "$NAMESPACE"
  check_label service_account "$SERVICE_ACCOUNT"
  [[ "${#NAME}" -le "$MAX_NAME" ]] || refuse "--name=$NAME has ${#NAME} characters; needed are at most $MAX_NAME"
}

check_label() {
  case "$2" in
    "" | [!a-z]* | *[!a-z0-9-]* | *-) refuse "--$1=$2 is not a name" "needed are small letters, digits and -, a letter first" ;;
  esac
}

check() {
  [[ "$COMMAND" == build ]] || need name "what the JobSet is called, for example --name=swerl"
  case "$COMMAND" in
    submit | resume | pool)
      need topology "the slice, for example --topology=v5p:4x4x8"
      read_topology "$TOPOLOGY" "$CHIPS_PER_HOST"
      ;;
  esac
  case "$COMMAND" in
    submit | resume | build) need image "the one in your registry, as --image=us-docker.pkg.dev/PROJECT/REPO/swerl_jax:1" ;;
    pool)
      need cluster "the Standard cluster that gets the node pool"
      need location "the cluster's zone or region"
      ;;
  esac
  case "$COMMAND" in
    submit | resume) read_trainer && check_workdir ;;
  esac
  [[ "$COMMAND" == build ]] || check_values
}

check_workdir() {
  local volume
  [[ "$WORKDIR" != gs://* ]] || return 0
  for volume in ${VOLUME[@]+"${VOLUME[@]}"}; do
    [[ "$WORKDIR" != "${volume#*:}"/* ]] || return 0
  done
  refuse "--workdir=$WORKDIR would be inside each pod, and go with it" \
    "needed is a place that stays: gs://BUCKET/RUN, or one below a --volume=CLAIM:/PATH"
}

COMMAND="${1:---help}"
[[ $# -eq 0 ]] || shift
case "$COMMAND" in
  --help | -h) show_help && exit 0 ;;
  pool) TOOL=(gcloud https://cloud.google.com/sdk/docs/install) ;;
  build) TOOL=(docker https://docs.docker.com/engine/install) ;;
  submit | resume | log | status | stop) TOOL=(kubectl https://kubernetes.io/docs/tasks/tools) ;;
  *) refuse "'$COMMAND' is not a sub-command" "they are pool, build, submit, resume, log, status, stop" ;;
esac
parse_options "name topology image namespace service_account chips_per_host restarts grace_s extra cluster location" \
  "node_selector label env volume pool_flag" "spot dry_run" "$@"
check
need_tool "${TOOL[@]}"
"$COMMAND"
