#!/usr/bin/env bash
# tpu/status.sh [NAME] [OPTIONS]
#
# How a TPU is: its request, its machines, and the last line that the run on it printed. Without a
# name: all that create.sh made.
#
#   --zone ZONE        gcloud's compute/zone by default
#   --project PROJECT  gcloud's project by default
#   --dry-run          print the commands and run none
#   --help
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"

NAME=''
while [[ $# -gt 0 ]]; do
    case $1 in
        --help | -h) show_help ;;
        --dry-run) DRY_RUN=true ;;
        --zone | --project) need_value "$@" && PLACE+=("$1=$2") && shift ;;
        --zone=?* | --project=?*) PLACE+=("$1") ;;
        -*) refuse "there is no option $1; --help shows them." ;;
        *) [[ -z $NAME ]] || refuse "one name at a time, not '$NAME' and '$1'." && NAME=$1 ;;
    esac
    shift
done
need_gcloud

if [[ -z $NAME ]]; then
    if $DRY_RUN; then
        typed gcloud compute tpus queued-resources list "${PLACE[@]}" \
            --format='csv[no-heading](name.basename(),state.state,tpu.nodeSpec[0].node.labels.jaxft)'
    else
        labelled
    fi
    exit 0
fi
check_name "$NAME"

REQUEST=(gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format='value(state.state)')
MACHINES=(gcloud compute tpus tpu-vm describe "$NAME" "${PLACE[@]}" '--format=value(state,health)')
LAST=(gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=0 '--command=tail -n 1 jaxft.log')
if $DRY_RUN; then
    typed "${REQUEST[@]}"
    typed "${MACHINES[@]}"
    typed "${LAST[@]}"
    exit 0
fi
STATE=$("${REQUEST[@]}" 2> /dev/null) || refuse "there is no TPU '$NAME' here; without a name, all are listed."
HEALTH=$("${MACHINES[@]}" 2> /dev/null | tr '\t' ' ') || HEALTH='none'
printf 'request   %s\nmachines  %s\n' "$STATE" "$HEALTH"
if [[ $HEALTH == READY* ]]; then
    LINE=$("${LAST[@]}" 2> /dev/null) || LINE='nothing ran here yet'
    printf 'run       %s\n' "$LINE"
else
    field "$NAME" 'yaml(state)' || true
fi
