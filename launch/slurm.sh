#!/usr/bin/env bash
# Runs a command on the GPUs of a Slurm cluster: one process for each GPU.
#
#   bash launch/slurm.sh --name=NAME --nodes=2 --gpus_per_node=8 --venv=DIR [FLAGS] -- COMMAND...
#   scancel NAME's job number      ends it
#
#   bash launch/slurm.sh --name=dsi --nodes=2 --gpus_per_node=8 --venv="$HOME/gr_jax/.venv" \
#     --time=1-00:00:00 -- python -m gr_jax.train --gin_file=gin/runs/beir.gin \
#     --gin.CORPUS=\"/scratch/corpus\" --gin.MODEL_DIR=\"/scratch/model\"
#
# --venv is an environment with gr-jax[cuda] that all nodes see, as they have to see MODEL_DIR and
# this checkout. --signal_seconds=120 before its time is over, and when Slurm preempts it, the run
# saves and ends with status 130, and the job is requeued: it goes on where it was. So does a crashed
# one, --max_crashes=3 times in a row. A user's mistake (status 2) fails the job.
#
# Flags: --partition; --account; --time; --cpus_per_gpu=8; --log_dir=. for NAME-JOB.out; --setup, a
# shell command that comes first, as in --setup='module load cuda'; --env=NAME=VALUE;
# --sbatch=FLAG, repeated, for anything else that sbatch takes; --dry_run.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=lib.sh
source "$checkout/launch/lib.sh"

FLAGS="name nodes gpus_per_node cpus_per_gpu partition account time log_dir venv setup max_crashes
  signal_seconds"
LISTS="env sbatch"
SWITCHES=""
name=""
nodes=1
gpus_per_node=""
cpus_per_gpu=8
partition=""
account=""
time=""
log_dir="."
venv=""
setup=""
max_crashes=3
signal_seconds=120
env=()
sbatch=()

main() {
  local job item
  parse_flags "$@"
  require name gpus_per_node
  require_command
  require_environment
  require_numbers nodes gpus_per_node cpus_per_gpu max_crashes signal_seconds
  [[ ! $venv || -x $venv/bin/python || $dry_run ]] || fail "--venv=$venv: there is no bin/python in it"
  # JAX's processes find each other by Slurm's variables; each takes the GPU of its local rank, for
  # which it has to see them all: no --gpus-per-task
  job=(sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus_per_node"
    "--gpus-per-node=$gpus_per_node" "--cpus-per-task=$cpus_per_gpu" --requeue --open-mode=append
    "--signal=TERM@$signal_seconds" "--output=$log_dir/%x-%j.out")
  [[ $partition ]] && job+=("--partition=$partition")
  [[ $account ]] && job+=("--account=$account")
  [[ $time ]] && job+=("--time=$time")
  job+=(${sbatch[@]+"${sbatch[@]}"} "$checkout/launch/slurm.sbatch" "$checkout"
    "--max_crashes=$max_crashes" "--log_dir=$log_dir" "--cpus_per_gpu=$cpus_per_gpu")
  [[ $venv ]] && job+=("--venv=$venv")
  [[ $setup ]] && job+=("--setup=$setup")
  for item in ${env[@]+"${env[@]}"}; do
    job+=("--env=$item")
  done
  [[ $dry_run ]] || mkdir -p "$log_dir"
  run "${job[@]}" -- "${command[@]}"
}

main "$@"
