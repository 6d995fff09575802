#!/usr/bin/env bash
# Runs a command on the TPU VMs of a Cloud TPU queued resource (v2 to v6e), on every worker.
#
#   bash launch/tpu_vm.sh run --name=NAME --zone=ZONE --type=v5litepod-16 [FLAGS] -- COMMAND...
#   bash launch/tpu_vm.sh stop --name=NAME --zone=ZONE      the run saves and ends; the TPU stays
#   bash launch/tpu_vm.sh delete --name=NAME --zone=ZONE
#
#   bash launch/tpu_vm.sh run --name=dsi --zone=us-west4-a --type=v5litepod-16 --spot \
#     --setup='mountpoint -q /mnt/run || { sudo mkdir -p /mnt/run && sudo mount SERVER:/SHARE /mnt/run; }' \
#     -- python -m gr_jax.train --gin_file=gin/runs/beir.gin \
#     --gin.CORPUS=\"/mnt/run/corpus\" --gin.MODEL_DIR=\"/mnt/run/model\"
#
# `run` makes the queued resource where it is missing, waits for it, copies this checkout, installs
# it and runs the command. A preempted resource is made again and the command runs again; so does it
# when the connection is lost. Ctrl-C ends this script and not the run: the same call follows it.
#
# Flags: --project; --slices=1, more for multislice; --spot; --reserved; --runtime_version (by
# --type); --service_account; --network; --subnetwork; --internal_ips, --iap (ssh through it);
# --setup, --env=NAME=VALUE, --install, --max_crashes: see run_worker.sh; --max_restarts=10 of crashed
# runs, lost connections and other failures of the cloud; --delete_after, when the run is done or has failed for a user's
# mistake; --poll_seconds=30; --dry_run.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
source "$checkout/launch/lib.sh"

FLAGS="name project zone type slices runtime_version service_account network subnetwork setup install
  max_crashes max_restarts poll_seconds"
LISTS="env"
SWITCHES="spot reserved internal_ips iap delete_after"
name=""
project=""
zone=""
type=""
slices=1
runtime_version=""
service_account=""
network=""
subnetwork=""
setup=""
install=".[tpu]"
env=()
max_crashes=3
max_restarts=10
poll_seconds=30
spot=""
reserved=""
internal_ips=""
iap=""
delete_after=""

tpus=(gcloud compute tpus queued-resources)

make_request() {
  local request=("${tpus[@]}" create "$name" "--accelerator-type=$type"
    "--runtime-version=$runtime_version" "${place[@]}")
  if ((slices == 1)); then
    request+=("--node-id=$name")
  else
    request+=("--node-count=$slices" "--node-prefix=$name")
  fi
  [[ $spot ]] && request+=(--spot)
  [[ $reserved ]] && request+=(--reserved)
  [[ $service_account ]] && request+=("--service-account=$service_account" --scopes=cloud-platform)
  [[ $network ]] && request+=("--network=$network")
  [[ $subnetwork ]] && request+=("--subnetwork=$subnetwork")
  [[ $internal_ips ]] && request+=(--internal-ips)
  note "asking for $type in $zone; it may take long until there is room"
  run "${request[@]}" --quiet
}

# Prints the state of the queued resource, nothing where there is none.
describe() {
  local said
  if said=$(run "${tpus[@]}" describe "$name" "${place[@]}" '--format=value(state.state)' 2>&1); then
    printf '%s\n' "${said##*$'\n'}" # gcloud may warn of something before
  elif [[ $said != *NOT_FOUND* ]]; then
    note "$said"
    return 1
  fi
}

# Sets `state`.
ask_state() {
  local answer
  state=""
  if [[ $dry_run ]]; then
    describe
    return
  fi
  ask describe
  asked=true
  state=$answer
}

make_workers() {
  local said=""
  ask_state
  while [[ $state != ACTIVE ]]; do
    case $state in
      "") make_request || return ;;
      FAILED)
        note "$name could not be made: quota, zone or type? gcloud compute tpus queued-resources describe $name has the reason"
        exit 1
        ;;
      SUSPENDED) delete_workers || return ;;
    esac
    [[ $dry_run ]] && break
    sleep "$poll_seconds"
    ask_state
    if [[ $state != "$said" ]]; then
      note "$name: ${state:-deleted}"
      said=$state
    fi
  done
}

copy_checkout() {
  pack_checkout "$archive" || return
  run "${tpus[@]}" scp "$archive" "$name:gr_jax.tar.gz" "${all_workers[@]}" "${place[@]}" --quiet
}

run_on_workers() {
  run "${tpus[@]}" ssh "$name" "${all_workers[@]}" "${place[@]}" --quiet "--command=$1"
}

ask_workers() {
  ask_state
  case $state in
    ACTIVE) workers=alive ;;
    "" | DELETING) workers=deleted ;; # a preempted one stays, SUSPENDED
    *) workers=preempted ;;
  esac
}

delete_workers() {
  run "${tpus[@]}" delete "$name" "${place[@]}" --force --quiet
}

known_runtime() {
  case $type in
    v6e-*) printf 'v2-alpha-tpuv6e' ;;
    v5p-*) printf 'v2-alpha-tpuv5' ;;
    v5litepod-*) printf 'v2-alpha-tpuv5-lite' ;;
    v4-* | v3-* | v2-*) printf 'tpu-ubuntu2204-base' ;;
  esac
}

main() {
  parse_verb "$@"
  require name zone
  require_resource_name name
  place=("--zone=$zone")
  [[ $project ]] && place+=("--project=$project")
  # by default gcloud works through them 64 at a time, and the first 64 would wait for the rest
  all_workers=(--node=all --worker=all --batch-size=4096)
  [[ $iap ]] && all_workers+=(--tunnel-through-iap)
  archive=${TMPDIR:-/tmp}/gr_jax-$name.tar.gz
  case $verb in
    stop) run_on_workers "$(worker_command stop)" ;;
    delete) delete_workers ;;
    run)
      require type
      require_command
      require_environment
      require_numbers slices max_crashes max_restarts poll_seconds
      ((slices > 0)) || fail "--slices=$slices: 1 at least"
      [[ $runtime_version ]] || runtime_version=$(known_runtime)
      [[ $runtime_version ]] ||
        fail "--type=$type: v6e-N, v5p-N, v5litepod-N, v4-N; TPU7x is compute_engine.sh's and GKE's; others need --runtime_version"
      [[ $spot && $reserved ]] && fail "--spot and --reserved: one of them"
      run_until_done
      ;;
  esac
}

main "$@"
