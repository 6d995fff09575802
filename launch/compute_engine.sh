#!/usr/bin/env bash
# Runs a command on a TPU slice of Compute Engine (v5p, v6e, TPU7x): a managed instance group.
#
#   bash launch/compute_engine.sh run --name=NAME --project=PROJECT --zone=ZONE \
#     --machine_type=ct6e-standard-4t --topology=4x4 --image_family=FAMILY [FLAGS] -- COMMAND...
#   bash launch/compute_engine.sh stop --name=NAME --project=PROJECT --zone=ZONE     the run saves and ends
#   bash launch/compute_engine.sh delete --name=NAME --project=PROJECT --zone=ZONE   group, template and policy
#
# `run` makes instance template, workload policy and group where they are missing, copies this
# checkout to every instance, installs it and runs the command. When an instance was preempted the
# group is made again, as a slice has to be, and the command runs again; so does it when a connection
# is lost. Ctrl-C ends this script and not the run: the same call follows it. Several slices: GKE.
#
# Flags: --image_family and --image_project=ubuntu-os-accelerator-images (gcloud compute
# images list --project=ubuntu-os-accelerator-images names the families); --spot; --reservation=NAME;
# --service_account; --network; --subnetwork; --boot_disk=200GB; --iap (ssh through it);
# --setup, --env=NAME=VALUE, --install, --max_crashes: see run_worker.sh; --max_restarts=10 of crashed
# runs, lost connections and other failures of the cloud; --delete_after, when the run is done or has failed for a user's
# mistake; --poll_seconds=30; --dry_run, which writes INSTANCE for names that the cloud will give.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
source "$checkout/launch/lib.sh"

FLAGS="name project zone machine_type topology image_family image_project reservation service_account
  network subnetwork boot_disk setup install max_crashes max_restarts poll_seconds"
LISTS="env"
SWITCHES="spot iap delete_after"
name=""
project=""
zone=""
machine_type=""
topology=""
image_family=""
image_project="ubuntu-os-accelerator-images"
reservation=""
service_account=""
network=""
subnetwork=""
boot_disk="200GB"
setup=""
install=".[tpu]"
env=()
max_crashes=3
max_restarts=10
poll_seconds=30
spot=""
iap=""
delete_after=""

instances=()
groups=(gcloud compute instance-groups managed)
templates=(gcloud compute instance-templates)
policies=(gcloud compute resource-policies)

# missing LIST-COMMAND...: whether the command, which lists what is called --name, lists nothing.
missing() {
  local question=("$@" "--filter=name=$name" '--format=value(name)' "--project=$project")
  local answer
  if [[ $dry_run ]]; then
    run "${question[@]}"
    return
  fi
  ask "${question[@]}"
  [[ ! $answer ]]
}

group_missing() {
  missing "${groups[@]}" list "--zones=$zone"
}

make_template() {
  local template=("${templates[@]}" create "$name" "--machine-type=$machine_type"
    "--image-family=$image_family" "--image-project=$image_project" --maintenance-policy=TERMINATE
    "--boot-disk-size=$boot_disk" --scopes=cloud-platform "--project=$project")
  [[ $spot ]] && template+=(--provisioning-model=SPOT --instance-termination-action=STOP)
  [[ $reservation ]] && template+=(--provisioning-model=reservation-bound
    --reservation-affinity=specific "--reservation=$reservation")
  [[ $service_account ]] && template+=("--service-account=$service_account")
  [[ $network ]] && template+=("--network=$network")
  [[ $subnetwork ]] && template+=("--subnet=$subnetwork" "--region=$region")
  run "${template[@]}" --quiet
}

make_group() {
  local group=("${groups[@]}" create "$name" "--template=$name" "--size=$vms" "${place[@]}")
  # one machine is a slice of its own
  ((vms > 1)) && group+=("--workload-policy=projects/$project/regions/$region/resourcePolicies/$name")
  note "asking for $vms machines, $topology, in $zone"
  run "${group[@]}" --quiet
}

# Sets `instances`; fails unless all are there and run.
ask_instances() {
  local question=("${groups[@]}" list-instances "$name" "${place[@]}"
    '--format=value(name,instanceStatus)') answer instance status running=0
  instances=()
  if [[ $dry_run ]]; then
    run "${question[@]}"
    instances=(INSTANCE)
    return
  fi
  ask "${question[@]}"
  while read -r instance status; do
    [[ $instance ]] && instances+=("$instance")
    [[ $status == RUNNING ]] && running=$((running + 1))
  done <<<"$answer"
  ((running >= vms))
}

make_workers() {
  if ((vms > 1)) && missing "${policies[@]}" list "--regions=$region"; then
    run "${policies[@]}" create workload-policy "$name" --type=HIGH_THROUGHPUT \
      "--accelerator-topology=$topology" "--region=$region" "--project=$project" --quiet || return
  fi
  if missing "${templates[@]}" list; then
    make_template || return
  fi
  if group_missing; then
    make_group || return
  fi
  asked=true
  run "${groups[@]}" wait-until "$name" --stable "${place[@]}"
}

copy_checkout() {
  local instance
  if ! ask_instances; then
    note "not every instance of $name runs"
    return 1
  fi
  pack_checkout "$archive" || return
  for instance in "${instances[@]}"; do
    run gcloud compute scp "$archive" "$instance:gr_jax.tar.gz" "${connection[@]}" --quiet || return
  done
}

# Runs a shell command on all instances at once. A user's mistake on one of them is everyone's.
run_on_workers() {
  local instance pid status worst=0 pids=()
  if [[ $dry_run ]]; then
    run gcloud compute ssh INSTANCE "${connection[@]}" --quiet "--command=$1"
    return
  fi
  ((${#instances[@]})) || return 255
  for instance in "${instances[@]}"; do
    gcloud compute ssh "$instance" "${connection[@]}" --quiet "--command=$1" </dev/null \
      > >(sed "s/^/[$instance] /") 2> >(sed "s/^/[$instance] /" >&2) &
    pids+=($!)
  done
  # shellcheck disable=SC2064 # these processes, not those of later
  trap "kill ${pids[*]} 2>/dev/null || true" EXIT
  for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    if ((worst == 0 || status == 2)); then
      worst=$status
    fi
  done
  trap - EXIT
  return "$worst"
}

ask_workers() {
  if group_missing; then
    workers=deleted # a preempted slice leaves its group
  elif ask_instances; then
    workers=alive
  else
    workers=preempted
  fi
}

# What a preempted slice needs: its template and policy can stay.
delete_workers() {
  run "${groups[@]}" delete "$name" "${place[@]}" --quiet
}

delete_all() {
  delete_workers
  run "${templates[@]}" delete "$name" "--project=$project" --quiet
  if [[ $dry_run ]] || ! missing "${policies[@]}" list "--regions=$region"; then
    run "${policies[@]}" delete "$name" "--region=$region" "--project=$project" --quiet
  fi
}

check_shape() {
  local chips per_vm
  [[ $machine_type =~ -([148])t$ ]] ||
    fail "--machine_type=$machine_type: a machine with TPUs, as in ct6e-standard-4t or tpu7x-standard-4t"
  per_vm=${BASH_REMATCH[1]}
  chips=$(chips_of "$topology")
  ((chips % per_vm == 0)) ||
    fail "--topology=$topology has $chips chips: machines of $machine_type, with $per_vm each, do not make it"
  vms=$((chips / per_vm))
}

main() {
  parse_verb "$@"
  require name project zone
  require_resource_name name
  region=${zone%-*}
  place=("--zone=$zone" "--project=$project")
  connection=("${place[@]}")
  [[ $iap ]] && connection+=(--tunnel-through-iap)
  archive=${TMPDIR:-/tmp}/gr_jax-$name.tar.gz
  vms=1
  case $verb in
    stop)
      ask_instances || note "not every instance of $name runs"
      run_on_workers "$(worker_command stop)"
      ;;
    delete) delete_all ;;
    run)
      require machine_type topology image_family
      require_command
      require_environment
      require_numbers max_crashes max_restarts poll_seconds
      check_shape
      [[ $spot && $reservation ]] && fail "--spot and --reservation: one of them"
      run_until_done
      ;;
  esac
}

main "$@"
