#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster, as a JobSet.
#
#   bash launch/gke/jobset.sh --name=NAME --image=IMAGE --accelerator=tpu-v6e-slice --topology=4x4 \
#     --claim=CLAIM --mount=/mnt/run [FLAGS] -- COMMAND...
#   kubectl delete jobset NAME      ends it; --name is free again then
#
#   bash launch/gke/jobset.sh --name=dsi --image=IMAGE --accelerator=tpu-v6e-slice --topology=4x4 \
#     --claim=filestore --mount=/mnt/run -- python -m gr_jax.train --gin_file=gin/runs/beir.gin \
#     --gin.CORPUS=\"/mnt/run/corpus\" --gin.MODEL_DIR=\"/mnt/run/model\"
#
# IMAGE is built from launch/gke/Dockerfile. All pods see one file system at --mount: a
# PersistentVolumeClaim that many can write to (--claim, Filestore for instance), or a bucket
# (--bucket, with a hierarchical namespace, through Cloud Storage FUSE; --service_account must be
# allowed to write to it).
#
# A failed or preempted pod restarts all of them, --max_restarts=50 times, and the run goes on where
# it was; a user's mistake (status 2) fails the JobSet at once. A pod that has to go has
# --grace_seconds=300 to save.
#
# Flags: --slices=1; --chips_per_host=4; --spot; --reservation=NAME; --queue=QUEUE of Kueue;
# --namespace; --service_account; --env=NAME=VALUE; --dry_run, which prints the kubectl command with
# the JobSet it is given.
set -euo pipefail
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=../lib.sh
source "$checkout/launch/lib.sh"

FLAGS="name image accelerator topology claim bucket mount slices chips_per_host max_restarts
  grace_seconds reservation queue namespace service_account"
LISTS="env"
SWITCHES="spot"
name=""
image=""
accelerator=""
topology=""
claim=""
bucket=""
mount=""
slices=1
chips_per_host=4
max_restarts=50
grace_seconds=300
reservation=""
queue=""
namespace="default"
service_account=""
env=()
spot=""

# json WORD: the word as a JSON string, which YAML reads too.
json() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\r'/\\r}
  text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

# literal WORD: the same, for a word that Kubernetes would expand.
literal() {
  json "$(for_kubernetes "$1")"
}

job_labels() {
  [[ $queue ]] || return 0
  printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$(json "$queue")"
}

pod_annotations() {
  [[ $bucket ]] || return 0
  printf '            metadata:\n              annotations:\n                gke-gcsfuse/volumes: "true"\n'
}

node_selectors() {
  [[ $spot ]] && printf '                cloud.google.com/gke-spot: "true"\n'
  [[ $reservation ]] && printf '                cloud.google.com/reservation-name: %s\n' "$(json "$reservation")"
  return 0
}

account() {
  [[ $service_account ]] || return 0
  printf '              serviceAccountName: %s\n' "$(json "$service_account")"
}

volume() {
  if [[ $claim ]]; then
    printf '                  persistentVolumeClaim:\n                    claimName: %s\n' "$(json "$claim")"
  else
    printf '                  csi:\n                    driver: gcsfuse.csi.storage.gke.io\n'
    printf '                    volumeAttributes:\n                      bucketName: %s\n' "$(json "$bucket")"
    # what one host has written, all have to see at once
    printf '                      mountOptions: "implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0"\n'
  fi
}

container_command() {
  local word
  for word in "${command[@]}"; do
    printf '                    - %s\n' "$(literal "$word")"
  done
}

environment() {
  local pair
  for pair in ${env[@]+"${env[@]}"}; do
    printf '                    - name: %s\n                      value: %s\n' \
      "${pair%%=*}" "$(literal "${pair#*=}")"
  done
}

jobset() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  namespace: $namespace
$(job_labels)
  annotations:
    # a slice is a node pool: no two of the jobs share one
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $max_restarts
    rules:
      - name: usersMistake
        action: FailJobSet
        onJobFailureReasons:
          - PodFailurePolicy
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0 # one pod that fails fails its slice, and JobSet restarts them all
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: gr-jax
                  operator: In
                  values: [2]
          template:
$(pod_annotations)
            spec:
              restartPolicy: Never
              hostNetwork: true
              dnsPolicy: ClusterFirstWithHostNet
              terminationGracePeriodSeconds: $grace_seconds
$(account)
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $(json "$accelerator")
                cloud.google.com/gke-tpu-topology: $(json "$topology")
$(node_selectors)
              containers:
                - name: gr-jax
                  image: $(json "$image")
                  command:
$(container_command)
                  env:
                    - name: PYTHONUNBUFFERED
                      value: "1"
$(environment)
                  resources:
                    limits:
                      google.com/tpu: $chips_per_host
                  volumeMounts:
                    - name: run
                      mountPath: $(json "$mount")
              volumes:
                - name: run
$(volume)
YAML
}

main() {
  local chips manifest
  parse_flags "$@"
  require name image accelerator topology mount
  require_command
  require_resource_name name namespace
  require_environment
  require_numbers slices chips_per_host max_restarts grace_seconds
  [[ ($claim && ! $bucket) || ($bucket && ! $claim) ]] ||
    fail "--claim=CLAIM or --bucket=BUCKET, one of them: all pods have to see MODEL_DIR"
  [[ $mount == /* ]] || fail "--mount=$mount: an absolute path is needed"
  [[ $spot && $reservation ]] && fail "--spot and --reservation: one of them"
  ((slices > 0)) || fail "--slices=$slices: 1 at least"
  chips=$(chips_of "$topology")
  ((chips_per_host > 0 && chips % chips_per_host == 0)) ||
    fail "--topology=$topology has $chips chips: hosts of --chips_per_host=$chips_per_host do not make it"
  hosts=$((chips / chips_per_host))
  manifest=$(jobset | grep -v '^$')
  if [[ $dry_run ]]; then
    printf "kubectl apply --filename=- <<'JOBSET'\n%s\nJOBSET\n" "$manifest"
    return
  fi
  printf '%s\n' "$manifest" | kubectl apply --filename=-
  note "kubectl logs --namespace=$namespace --follow --selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
}

main "$@"
