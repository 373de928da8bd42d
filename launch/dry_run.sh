# shellcheck shell=bash
# Sourced by the scripts of this folder. `run COMMAND...` runs a command. With --dry-run
# among the arguments, or DRY_RUN=1, it prints the command instead, so that it can be pasted.

DRY_RUN=${DRY_RUN:-}
_rest=()
for _word in "$@"; do
  if [[ $_word == --dry-run ]]; then DRY_RUN=1; else _rest+=("$_word"); fi
done
set -- "${_rest[@]}"

# A word as a shell reads it, in quotes only where it needs them: --flag='a value'.
word() {
  local flag="" value=$1
  if [[ ! $value =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]]; then
    if [[ $value =~ ^--[A-Za-z0-9_.-]+= ]]; then
      flag=${BASH_REMATCH[0]} value=${value#*=}
    fi
    value=${value@Q}
  fi
  printf '%s' "$flag$value"
}

# A command as one line, for a shell elsewhere.
quoted() {
  local one line=""
  for one in "$@"; do line+="${line:+ }$(word "$one")"; done
  printf '%s' "$line"
}

# A command on lines of about 90 columns.
shown() {
  local one next line=""
  for one in "$@"; do
    next=$(word "$one")
    if [[ $line ]] && ((${#line} + ${#next} > 88)); then
      printf '%s \\\n' "$line"
      line="  $next"
    else
      line+="${line:+ }$next"
    fi
  done
  printf '%s\n' "$line"
}

run() {
  if [[ $DRY_RUN ]]; then shown "$@"; else "$@"; fi
}

# Ends the script with a message: what was expected, what came, what to do.
refuse() {
  printf 'Error: %s\n' "$*" >&2
  exit 2
}
