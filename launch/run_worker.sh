#!/usr/bin/env bash
# Runs a command on a worker, detached: when the connection is lost it goes on, and the same call
# waits for it again. tpu_vm.sh and compute_engine.sh call this; on a machine of your own:
#
#   bash launch/run_worker.sh --install= -- python -m gr_jax.train --gin_file=FILE
#   bash launch/run_worker.sh --stop       asks the run to save and end
#
# Flags: --install=REQUIREMENT what pip installs in ~/gr_jax_run/venv, relative to the checkout when
# it is a path (default .[tpu]; empty: nothing, the Python on the PATH has all); --setup=COMMAND a
# shell command to run first, every time, to mount a file system for instance; --env=NAME=VALUE;
# --max_crashes=3 in a row that are restarted; --restart_seconds=10 before a restart; --dry_run.
#
# An interrupted run (status 130) is started again, a crashed one too, up to the limit. A user's
# mistake (status 2) is not. Log, status and environment are in ~/gr_jax_run.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

FLAGS="install setup max_crashes restart_seconds poll_seconds"
LISTS="env"
SWITCHES="stop"
install=".[tpu]"
setup=""
env=()
max_crashes=3
restart_seconds=10
poll_seconds=0.2
stop=""

healthy_seconds=600 # a crash after this long is not one in a row
home=$HOME/gr_jax_run

find_python() {
  local python
  for python in python3.12 python3.13 python3; do
    if "$python" -c 'import sys, ensurepip; sys.exit(not (3, 12) <= sys.version_info[:2] <= (3, 13))' \
      2>/dev/null; then
      printf '%s' "$python"
      return
    fi
  done
}

# TPU VM images come with Pythons that are too old for gr_jax; uv brings one along.
make_environment() {
  local python
  [[ $install ]] || return 0
  # one that was cut short has no pip
  if ! "$home/venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    if [[ $python ]]; then
      run "$python" -m venv --clear "$home/venv"
    else
      run python3 -m pip install --quiet --user --upgrade uv
      run python3 -m uv venv --quiet --clear --seed --python=3.12 "$home/venv"
    fi
  fi
  run "$home/venv/bin/python" -m pip install --quiet --constraint constraints.txt "$install"
}

enter_checkout() {
  [[ -f $HOME/gr_jax.tar.gz ]] || return 0 # a machine of one's own: where one is
  run rm -rf "$home/checkout"
  run mkdir -p "$home/checkout"
  run tar -xzf "$HOME/gr_jax.tar.gz" -C "$home/checkout"
  run cd "$home/checkout"
}

prepare() {
  local pair
  if [[ $setup ]]; then
    run bash -c "$setup"
  fi
  enter_checkout
  make_environment
  [[ $install ]] && PATH=$home/venv/bin:$PATH
  export PYTHONUNBUFFERED=1 # a log that is behind helps nobody
  for pair in ${env[@]+"${env[@]}"}; do
    export "${pair?}"
  done
}

# Runs the command until it is done, has failed for good or was told to stop. SIGUSR1 stops it. A
# machine that goes down sends SIGTERM to everyone, the command too, which takes a second one for
# "now": so none is passed on, and the status says that nobody asked for the end.
supervise() {
  local status=1 crashes=0 began stopping="" child=""
  trap '' HUP # a lost connection
  trap 'stopping=130; if [[ $child ]]; then kill -TERM "$child" || true; fi' USR1
  trap 'stopping=143' TERM
  while [[ ! $stopping ]]; do
    began=$SECONDS
    status=0
    "${command[@]}" &
    child=$!
    if [[ $stopping ]]; then # just now, before there was a child to tell
      kill -TERM "$child" || true
    fi
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ends a wait, not the child
      status=0
      wait "$child" || status=$?
    done
    child=""
    case $status in
      0 | 2)
        stopping=$status
        ;;
      130)
        note "interrupted (status 130)"
        ;;
      *)
        ((SECONDS - began >= healthy_seconds)) && crashes=0
        crashes=$((crashes + 1))
        note "crashed (status $status), $crashes in a row"
        ((crashes <= max_crashes)) || stopping=$status
        ;;
    esac
    if [[ ! $stopping ]]; then
      note "starting again in $restart_seconds s"
      sleep "$restart_seconds" &
      wait $! || true
    fi
  done
  printf '%s\n' "$stopping" >"$home/status"
}

follow() {
  local status=1
  tail -n +1 -f --pid="$(<"$home/pid")" --sleep-interval="$poll_seconds" "$home/log"
  [[ -f $home/status ]] && status=$(<"$home/status")
  return "$status"
}

stop_run() {
  if flock -n 9; then
    note "nothing runs here"
    return
  fi
  if [[ ! -f $home/pid ]]; then
    note "the run is being set up: stop it when it has begun"
    return 1
  fi
  run kill -USR1 "$(<"$home/pid")"
  [[ $dry_run ]] || flock 9 # until it has ended
}

main() {
  local asked
  parse_flags "$@"
  require_numbers max_crashes
  require_environment
  mkdir -p "$home"
  exec 9>>"$home/lock" # held by the supervisor and by what it runs
  if [[ $stop ]]; then
    stop_run
    return
  fi
  require_command
  asked=$(quoted "${command[@]}")
  if [[ $dry_run ]]; then
    prepare
    run "${command[@]}"
    return
  fi
  if flock -n 9; then
    rm -f "$home/status" "$home/pid"
    printf '%s\n' "$asked" >"$home/command"
    # tar, uv and mount have a status 2 of their own, which is not a user's mistake
    set -E
    trap 'note "the worker could not be set up"; exit 1' ERR
    prepare
    trap - ERR
    if [[ -f $home/log ]]; then
      mv "$home/log" "$home/log.before"
    fi
    : >"$home/log"
    supervise >>"$home/log" 2>&1 </dev/null &
    printf '%s\n' $! >"$home/pid"
  elif [[ ! -f $home/command || $(<"$home/command") != "$asked" ]]; then
    fail "another command runs here, --stop ends it: $(cat "$home/command")"
  else
    note "it runs already: following"
    while [[ ! -f $home/pid ]]; do # it is being set up
      if flock -n 9; then
        note "what was being set up has failed"
        return 1
      fi
      sleep "$poll_seconds"
    done
  fi
  follow
}

main "$@"
