#!/usr/bin/env bash
# tpu/create.sh NAME --type TYPE [OPTIONS]
#
# Ask for a TPU as a queued resource, and wait until it is there. It carries the label jaxft=NAME,
# by which delete.sh knows it. Called again, it goes on waiting.
#
#   --type TYPE        v5litepod-16, v6e-8, v4-32, v5p-8 and so on
#   --spot             cheaper; may be taken away at any time
#   --runtime VERSION  the image of its machines; by default the one that TYPE needs
#   --timeout MINUTES  give up waiting after so long; the request stays in the queue
#   --zone ZONE        gcloud's compute/zone by default
#   --project PROJECT  gcloud's project by default
#   --dry-run          print the commands and run none
#   --help
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"

NAME='' TYPE='' RUNTIME='' TIMEOUT='' SPOT=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --help | -h) show_help ;;
        --dry-run) DRY_RUN=true ;;
        --spot) SPOT=(--spot) ;;
        --type) need_value "$@" && TYPE=$2 && shift ;;
        --runtime) need_value "$@" && RUNTIME=$2 && shift ;;
        --timeout) need_number "$@" && TIMEOUT=$2 && shift ;;
        --zone | --project) need_value "$@" && PLACE+=("$1=$2") && shift ;;
        --zone=?* | --project=?*) PLACE+=("$1") ;;
        -*) refuse "there is no option $1; --help shows them." ;;
        *) [[ -z $NAME ]] || refuse "one name at a time, not '$NAME' and '$1'." && NAME=$1 ;;
    esac
    shift
done
check_name "$NAME"
[[ -n $TYPE ]] || refuse "give --type, such as v5litepod-16; README.md lists them."
if [[ -z $RUNTIME ]]; then
    case $TYPE in
        v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
        v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
        v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
        v[234]-*) RUNTIME=tpu-ubuntu2204-base ;;
        *) refuse "no image is known for type '$TYPE' (v5litepod-16, v6e-8, v4-32, v5p-8 ...); give --runtime." ;;
    esac
fi
need_gcloud

create() {
    run gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" "${PLACE[@]}" \
        --accelerator-type="$TYPE" --runtime-version="$RUNTIME" --labels="jaxft=$NAME" \
        ${SPOT[@]+"${SPOT[@]}"}
}

if $DRY_RUN; then
    create
    echo '# then, until it prints ACTIVE:'
    typed gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" --format='value(state.state)'
    exit 0
fi

if STATE=$(field "$NAME" 'value(state.state)'); then
    [[ $(label_of "$NAME") == "$NAME" ]] ||
        refuse "$NAME is there and was not made by this script; take another name."
    case $STATE in
        FAILED | SUSPENDED | SUSPENDING)
            refuse "$NAME is there and $STATE; take it away first: tpu/delete.sh $NAME." ;;
    esac
else
    create
fi

SEEN='' UNKNOWN=0 START=$SECONDS
while :; do
    if STATE=$(field "$NAME" 'value(state.state)'); then
        UNKNOWN=0
    else
        STATE=unknown UNKNOWN=$((UNKNOWN + 1)) # gcloud may fail for a moment
    fi
    [[ $STATE == "$SEEN" ]] || say "$NAME is $STATE"
    SEEN=$STATE
    case $STATE in
        ACTIVE) exit 0 ;;
        FAILED | SUSPENDED | SUSPENDING | DELETING)
            say "$NAME did not come. What Google says:"
            field "$NAME" 'yaml(state)' >&2 || true
            exit 1
            ;;
    esac
    if [[ $UNKNOWN -ge 5 ]]; then
        say "$NAME cannot be described:"
        gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" || true
        exit 1
    fi
    if [[ -n $TIMEOUT && $((SECONDS - START)) -ge $((60 * TIMEOUT)) ]]; then
        say "$NAME is still $STATE after $TIMEOUT minutes and stays in the queue; the same command waits on."
        exit 1
    fi
    sleep "$POLL"
done
