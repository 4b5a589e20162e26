# shellcheck shell=bash disable=SC2034 # what the scripts that source it use
# Sourced by the launch scripts: what a TPU topology is called, and how many hosts it has.
#
# Sources: cloud.google.com/tpu/docs/{v5p,v5e,v6e,runtimes}, cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
# An accelerator type counts chips, on v5p TensorCores (two a chip). A slice of several hosts has 4 chips on each; a v5e or
# v6e slice of one host has 1, 4 or 8. On Compute Engine 2x4 is one host of 8; on GKE it may also be two hosts of 4.
# The planner knows the same names, with as many hosts (of several slices of 2x4, two each): swerl_jax/policy/chips.py.

FLAT_SHAPES="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
SMALL_CUBES="2x2x1 2x2x2 2x2x4 2x4x4"
LARGE_CUBES="AxBxC of multiples of 4 with A <= B <= C, at most 16x16x24"

# read_topology VERSION:SHAPE[:xSLICES] [CHIPS_PER_HOST]: sets TPU_VERSION, SHAPE, SLICES, CHIPS (of a slice), CHIPS_PER_HOST,
# HOSTS (of a slice), ACCELERATOR_TYPE, RUNTIME_VERSION, GKE_ACCELERATOR and MACHINE_TYPE.
read_topology() {
  local rest="${1#*:}"
  TPU_VERSION="${1%%:*}" SHAPE="${rest%%:*}" SLICES=1
  if [[ "$rest" == *:* ]]; then
    SLICES="${rest#*:x}"
    case "$SLICES" in
      "" | *[!0-9]* | 0*) refuse "$1 has a wrong number of slices" "needed is for example $TPU_VERSION:$SHAPE:x2" ;;
    esac
  fi
  case "$TPU_VERSION" in
    v5p) check_cube "$1" ;;
    v5e | v6e) check_flat "$1" ;;
    *) refuse "the topology '$1' is unknown" "needed is VERSION:SHAPE, for example v5p:4x4x8, v6e:16x16 or v5e:2x4;" \
      "versions are v5p, v5e and v6e; :x2 at its end makes two slices" \
      "shapes of v5e and v6e are $FLAT_SHAPES; of v5p $SMALL_CUBES," "and $LARGE_CUBES" ;;
  esac
  CHIPS=$((${SHAPE//x/*}))
  set_chips_per_host "${2:-}"
  HOSTS=$((CHIPS / CHIPS_PER_HOST))
  [[ "$SLICES" == 1 || "$HOSTS" -gt 1 ]] ||
    refuse "$1 is several slices of one host each" "several slices need several hosts in each; take a larger shape"
  name_resources
}

check_flat() {
  [[ " $FLAT_SHAPES " == *" $SHAPE "* ]] || refuse "$1 is not a $TPU_VERSION topology" "its shapes are $FLAT_SHAPES"
}

check_cube() {
  local a b c
  [[ " $SMALL_CUBES " != *" $SHAPE "* ]] || return 0
  if [[ "$SHAPE" =~ ^[1-9][0-9]*x[1-9][0-9]*x[1-9][0-9]*$ ]]; then
    IFS=x read -r a b c <<< "$SHAPE"
    [[ $((a % 4 + b % 4 + c % 4)) != 0 || "$a" -gt "$b" || "$b" -gt "$c" || "$b" -gt 16 || "$c" -gt 24 ]] || return 0
  fi
  refuse "$1 is not a v5p topology" "its shapes are $SMALL_CUBES," \
    "and $LARGE_CUBES, for example 4x4x4, 4x4x8 or 8x8x8"
}

set_chips_per_host() {
  case "$TPU_VERSION:$CHIPS" in
    v5p:*) CHIPS_PER_HOST=4 ;;
    *:1) CHIPS_PER_HOST=1 ;;
    *:8) CHIPS_PER_HOST="${1:-8}" ;;
    *) CHIPS_PER_HOST=4 ;;
  esac
  case "$CHIPS:$CHIPS_PER_HOST" in
    8:4 | 8:8) ;;
    8:*) refuse "$TPU_VERSION:$SHAPE has 4 or 8 chips a host, not $1" ;;
  esac
  [[ -z "${1:-}" || "$1" == "$CHIPS_PER_HOST" ]] ||
    refuse "$TPU_VERSION:$SHAPE has $CHIPS_PER_HOST chips a host, not $1" "leave --chips_per_host out"
}

name_resources() {
  case "$TPU_VERSION" in
    v5p)
      ACCELERATOR_TYPE="v5p-$((2 * CHIPS))" RUNTIME_VERSION=v2-alpha-tpuv5
      GKE_ACCELERATOR=tpu-v5p-slice MACHINE_TYPE="ct5p-hightpu-4t"
      ;;
    v5e)
      ACCELERATOR_TYPE="v5litepod-$CHIPS" RUNTIME_VERSION=v2-alpha-tpuv5-lite
      GKE_ACCELERATOR=tpu-v5-lite-podslice MACHINE_TYPE="ct5lp-hightpu-${CHIPS_PER_HOST}t"
      ;;
    v6e)
      ACCELERATOR_TYPE="v6e-$CHIPS" RUNTIME_VERSION=v2-alpha-tpuv6e
      GKE_ACCELERATOR=tpu-v6e-slice MACHINE_TYPE="ct6e-standard-${CHIPS_PER_HOST}t"
      ;;
  esac
}
