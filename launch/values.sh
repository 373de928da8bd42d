# shellcheck shell=bash
# Sourced by scripts that are told much by variables: what these may be, and `passed`, those
# that PASS_ENV names, each as NAME=VALUE, for containers, which inherit none.

passed=()
for _name in ${PASS_ENV:-}; do
  [[ $_name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -v $_name ]] ||
    refuse "PASS_ENV must be names of variables that are set; one of its words is none."
  [[ ! $_name =~ ^(ACCELERATOR|JAX_PLATFORMS|CUDA_VISIBLE_DEVICES|PROCESS_ID)$ ]] ||
    refuse "PASS_ENV names $_name, which this script sets itself."
  passed+=("$_name=${!_name}")
done

# `expect NAME PATTERN WHAT` refuses a value of another form; what is not set may be that.
expect() {
  [[ -z ${!1:-} || ${!1} =~ ^($2)$ ]] || refuse "$1 must be $3, got \"${!1}\"."
}

counts() { # NAMES
  local one
  for one in "$@"; do expect "$one" '[1-9][0-9]*' "a number from 1 on"; done
}

# These become parts of commands elsewhere, and of manifests.
expect MOUNT '/[A-Za-z0-9._/-]+' "a folder from / on, of letters, digits and ._-"
expect IMAGE '[A-Za-z0-9._/:@-]+' "the name of a Docker image"

# `inside FOLDER FLAGS...`: what a container writes elsewhere is gone with it.
inside() {
  local folder=${1%/} flag
  shift
  for flag in "$@"; do
    [[ ! $flag =~ ^--?workdir$ ]] || refuse "write --workdir=FOLDER in one word."
    [[ ! $flag =~ ^--?workdir= ]] || [[ ${flag#*=} == "$folder"/* && ${flag#*=} != */../* ]] ||
      refuse "$flag must lie below MOUNT=$folder: what a container writes elsewhere is gone with it."
  done
}
