# shellcheck shell=bash disable=SC2154
# What the launch scripts share: flags, quoting, dry runs, error lines, and the loop that restarts a
# preempted run. To be sourced. A script declares its flags before it calls parse_flags:
#   FLAGS     names of --name=value, each a variable that holds the default
#   LISTS     names of --name=value that may be repeated, each an array
#   SWITCHES  names of --name, each a variable that becomes true
# What follows -- is the command to run, in the array `command`.

dry_run=""
command=()
asked=""

# fail LINE: a user's mistake. 2 is what every gr_jax command exits with then; nothing restarts it.
fail() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# note LINE: what happens, for people.
note() {
  printf '%s\n' "$1" >&2
}

# quoted WORDS...: the words as a shell would have to be given them, on one line where they have no
# line breaks themselves. A shell that reads the result, here or on a worker, has the same words.
quoted() {
  local quote="'\\''" word text="" plain='^[A-Za-z0-9_@%+=:,./~^-]+$'
  for word in "$@"; do
    # ~ and = mean something to a shell only at the beginning of a word
    if [[ ! $word =~ $plain || $word == [~=]* ]]; then
      word="'${word//\'/$quote}'"
    fi
    text+="${text:+ }$word"
  done
  printf '%s' "$text"
}

# run WORDS...: runs a command; a dry run prints it instead.
run() {
  if [[ $dry_run ]]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# usage: the comment at the head of the script.
usage() {
  sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"
}

_is_one_of() {
  local word
  for word in $2; do
    [[ $word == "$1" ]] && return
  done
  return 1
}

parse_flags() {
  local _flag _value # not the names of flags
  while (($#)); do
    case $1 in
      --)
        shift
        command=("$@")
        return
        ;;
      --help)
        usage
        exit 0
        ;;
      --?*=*)
        _flag=${1%%=*}
        _flag=${_flag#--}
        _value=${1#*=}
        if _is_one_of "$_flag" "$FLAGS"; then
          printf -v "$_flag" '%s' "$_value"
        elif _is_one_of "$_flag" "$LISTS"; then
          eval "$_flag+=(\"\$_value\")" # one of LISTS, so nothing but a name
        elif _is_one_of "$_flag" "$SWITCHES dry_run"; then
          fail "--$_flag takes no value"
        else
          _unknown "$_flag"
        fi
        ;;
      --?*)
        _flag=${1#--}
        if _is_one_of "$_flag" "$SWITCHES dry_run"; then
          printf -v "$_flag" 'true'
        elif _is_one_of "$_flag" "$FLAGS $LISTS"; then
          fail "$1 needs a value: $1=VALUE"
        else
          _unknown "$_flag"
        fi
        ;;
      *) fail "unexpected argument $(quoted "$1"): flags look like --name=value, and the command to run follows --" ;;
    esac
    shift
  done
}

# parse_verb run|stop|delete FLAGS...: sets `verb`, then as parse_flags.
parse_verb() {
  verb=${1:-}
  case $verb in
    run | stop | delete) shift ;;
    --help) ;; # parse_flags answers it
    *) fail "give a verb first: run, stop or delete; --help says more" ;;
  esac
  parse_flags "$@"
}

_unknown() {
  local word known=""
  for word in $FLAGS $LISTS $SWITCHES dry_run; do
    known+=" --$word"
  done
  fail "unknown flag --$1: there are$known"
}

# require NAMES...: flags that have no default.
require() {
  local _flag
  for _flag in "$@"; do
    [[ ${!_flag} ]] || fail "--$_flag=VALUE is required"
  done
}

require_command() {
  ((${#command[@]})) || fail "give the command to run after --, as in -- python -m gr_jax.train --gin_file=FILE"
}

# require_numbers NAMES...: whole numbers, 0 at least.
require_numbers() {
  local _flag
  for _flag in "$@"; do
    [[ ${!_flag} =~ ^(0|[1-9][0-9]{0,8})$ ]] || fail "--$_flag=${!_flag}: a whole number is needed"
  done
}

# require_resource_name NAMES...: what Google Cloud and Kubernetes take for a name.
require_resource_name() {
  local _flag pattern='^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$'
  for _flag in "$@"; do
    [[ ${!_flag} =~ $pattern ]] ||
      fail "--$_flag=${!_flag}: a lowercase letter, then lowercase letters, digits and -, 40 at most"
  done
}

# require_environment: --env is NAME=VALUE.
require_environment() {
  local pair pattern='^[A-Za-z_][A-Za-z0-9_]*='
  for pair in ${env[@]+"${env[@]}"}; do
    [[ $pair =~ $pattern ]] || fail "--env=$pair: NAME=VALUE is needed"
  done
}

# chips_of TOPOLOGY: 4x4x8 -> 128.
chips_of() {
  local chips=1 side sides pattern='^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$'
  [[ $1 =~ $pattern ]] || fail "--topology=$1: sides of the slice in chips, as in 4x4 or 2x2x4"
  IFS=x read -ra sides <<<"$1"
  for side in "${sides[@]}"; do
    chips=$((chips * side))
  done
  printf '%s' "$chips"
}

# for_kubernetes WORD: Kubernetes expands $(NAME) in what containers run, and $$ to $.
for_kubernetes() {
  local dollar="\$"
  printf '%s' "${1//"$dollar"/$dollar$dollar}"
}

# pack_checkout FILE: what workers need of the checkout that these scripts lie in.
pack_checkout() {
  run tar -czf "$1" --exclude=__pycache__ -C "$checkout" \
    pyproject.toml constraints.txt README.md LICENSE gr_jax gin tasks launch
}

# worker_command: what a shell on a worker is given: unpacks the scripts, the rest is
# run_worker.sh's. The scripts lie in a folder of their own: a run that is under way is not disturbed.
worker_command() {
  local words=(bash gr_jax_run/launch/run_worker.sh) pair
  if [[ $1 == run ]]; then
    words+=("--install=$install")
    [[ $setup ]] && words+=("--setup=$setup")
    for pair in ${env[@]+"${env[@]}"}; do
      words+=("--env=$pair")
    done
    words+=("--max_crashes=$max_crashes" -- "${command[@]}")
    printf '{ mkdir -p gr_jax_run && tar -xzf gr_jax.tar.gz -C gr_jax_run launch; } || exit 1; '
  else
    words+=("--$1")
  fi
  quoted "${words[@]}"
}

# ask WORDS...: sets `answer` to what the command prints. Once the cloud has answered at all, which
# the script notes in `asked`, one that cannot be reached is waited for: what it refuses at first is a
# user's mistake, the project or a permission.
ask() {
  # shellcheck disable=SC2034 # for who asks
  until answer=$("$@"); do
    [[ $asked ]] || exit 1
    sleep "$poll_seconds"
  done
}

_start() {
  copy_checkout || return 255
  run_on_workers "$(worker_command run)"
}

_delete_when_done() {
  local failures=0
  until delete_workers; do
    ask_workers
    [[ $workers == deleted ]] && return # by the call whose answer was lost
    failures=$((failures + 1))
    if ((failures > max_restarts)); then
      note "$name could not be deleted; it is still there and costs money"
      return 1
    fi
    sleep "$poll_seconds"
  done
}

# run_until_done: runs the command on the workers; makes them again when they were preempted and
# runs it again when the connection was lost. A script that calls it defines
#   make_workers    makes them where they are missing, and waits until they can be used
#   copy_checkout   gives them the archive
#   run_on_workers  runs a shell command on all of them; status: the command's, or ssh's 255
#   ask_workers     sets `workers`: alive, preempted, or deleted, which nobody but a person does
#   delete_workers
# What fails of these counts as a lost connection. bash has no `set -e` in what is called here, so
# each of their steps has to say `|| return`.
run_until_done() {
  local status workers failures=0
  trap 'exit 130' INT # gcloud may end Ctrl-C with a status that looks like a lost connection
  while true; do
    status=0
    workers=unknown
    if make_workers; then
      _start || status=$?
      [[ $dry_run || $status == 0 || $status == 2 ]] && break
      sleep "$poll_seconds" # a connection ends some time before the cloud says why
      ask_workers
    else
      status=255
      sleep "$poll_seconds"
    fi
    if [[ $workers == deleted ]]; then
      note "$name was deleted: the run ends with it"
      break
    fi
    if [[ $workers == preempted ]]; then
      note "$name was preempted: making it again, the run goes on where it was"
      if delete_workers; then
        failures=0
        continue
      fi
    elif [[ $status == 130 ]]; then
      note "stopped; the same command goes on from there"
      break
    fi
    failures=$((failures + 1))
    if ((failures > max_restarts)); then
      note "status $status after $max_restarts restarts: giving up; what there is of $name costs money"
      break
    fi
    note "status $status: again ($failures of $max_restarts)"
  done
  if [[ $delete_after && ($dry_run || $status == 0 || $status == 2) ]]; then
    _delete_when_done
  fi
  return "$status"
}
