#!/usr/bin/env bash
# Runs a command on TPU slices of a cluster that xpk looks after.
#
#   bash launch/xpk.sh --name=NAME --cluster=CLUSTER --zone=ZONE --type=v5litepod-16 --image=IMAGE \
#     [FLAGS] -- COMMAND...
#   xpk workload delete --workload=NAME --cluster=CLUSTER --zone=ZONE      ends it
#
#   bash launch/xpk.sh --name=dsi --cluster=tpus --zone=us-west4-a --type=v5litepod-16 \
#     --image=IMAGE --storage=filestore -- python -m gr_jax.train --gin_file=gin/runs/beir.gin \
#     --gin.CORPUS=\"/mnt/run/corpus\" --gin.MODEL_DIR=\"/mnt/run/model\"
#
# IMAGE is built from launch/gke/Dockerfile. --storage names what `xpk storage attach` has made known
# to the cluster; it is mounted where that says, and MODEL_DIR has to lie in it.
#
# A failed or preempted pod restarts all of them, --max_restarts=50 times; a user's mistake (status 2)
# does not. A pod that has to go has --grace_seconds=300 to save.
#
# Flags: --project; --slices=1; --priority=medium; --storage, --env=NAME=VALUE, repeated; --dry_run.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
source "$checkout/launch/lib.sh"

FLAGS="name cluster project zone type image slices max_restarts grace_seconds priority"
LISTS="env storage"
SWITCHES=""
name=""
cluster=""
project=""
zone=""
type=""
image=""
slices=1
max_restarts=50
grace_seconds=300
priority="medium"
env=()
storage=()

main() {
  local workload text item
  parse_flags "$@"
  require name cluster zone type image
  require_command
  require_resource_name name
  require_environment
  require_numbers slices max_restarts grace_seconds
  # xpk puts the command into one line of YAML, in ( ) &: exec, so that SIGTERM reaches the command
  text="exec $(quoted "${command[@]}")"
  [[ $text != *$'\n'* ]] || fail "the command has a line break, which xpk cannot pass on"
  text=$(for_kubernetes "$text")
  # To the statuses given here xpk adds 42 and 127 to 255 (get_restart_exit_codes in its
  # commands/workload.py, 1.16.0), 130, 134 and 137 among them, and fails the job for all others: for
  # 2, as 0 is no failure. These are 254 values; Kubernetes takes 255.
  workload=(xpk workload create "--workload=$name" "--cluster=$cluster" "--zone=$zone"
    "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" "--command=$text"
    "--max-restarts=$max_restarts" "--restart-on-exit-codes=1,3-126"
    "--termination-grace-period-seconds=$grace_seconds" "--priority=$priority")
  [[ $project ]] && workload+=("--project=$project")
  for item in ${storage[@]+"${storage[@]}"}; do
    workload+=("--storage=$item")
  done
  for item in ${env[@]+"${env[@]}"}; do
    workload+=("--env=$item")
  done
  run "${workload[@]}"
}

main "$@"
