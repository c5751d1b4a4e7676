#!/usr/bin/env bash
# Build an image of latxa-megatron with what is here: docker, podman, buildah or, for sif, Apptainer.
#
#   docker/build.sh cpu            latxa-megatron:cpu, for the demo and for trials
#   docker/build.sh gpu            latxa-megatron:gpu, for training
#   docker/build.sh sif            latxa-megatron.sif, the same for Apptainer
#
# What follows goes to the engine, as in: docker/build.sh cpu --build-arg BASE=registry.example/python:3.12-slim
# ENGINE=podman docker/build.sh cpu takes that engine.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,10s/^# \{0,1\}//p' docker/build.sh >&2
  exit 2
}

engine() {
  for one in docker podman buildah; do
    if "$one" info >/dev/null 2>&1; then
      echo "$one"
      return
    fi
  done
  echo "docker/build.sh: neither docker, podman nor buildah works here; install one, or start docker's daemon" >&2
  exit 2
}

build() {
  local name=$1 file=$2
  shift 2
  local with
  with=${ENGINE:-$(engine)}
  case $with in
    docker) "$with" build --file "$file" --tag "latxa-megatron:$name" "$@" . ;;
    *) "$with" build --format docker --file "$file" --tag "latxa-megatron:$name" "$@" . ;; # OCI's format has no health check
  esac
  echo "latxa-megatron:$name is built; docker/README.md says how to run it and bring it to a cluster"
}

target=${1:-}
[ $# -eq 0 ] || shift
case $target in
  cpu) build cpu docker/Dockerfile.cpu "$@" ;;
  gpu) build gpu docker/Dockerfile "$@" ;;
  sif)
    base=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)
    apptainer build --build-arg "BASE=$base" "$@" latxa-megatron.sif docker/latxa.def
    ;;
  *) usage ;;
esac
