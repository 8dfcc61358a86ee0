#!/usr/bin/env bash
# tpu/delete.sh [NAME ...] [OPTIONS]
#
# Delete TPUs that create.sh made: those named, or all that carry its label. Lists them and asks.
#
#   --yes              do not ask
#   --zone ZONE        gcloud's compute/zone by default
#   --project PROJECT  gcloud's project by default
#   --dry-run          print the commands and run none
#   --help
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"

NAMES=() YES=false
while [[ $# -gt 0 ]]; do
    case $1 in
        --help | -h) show_help ;;
        --dry-run) DRY_RUN=true ;;
        --yes | -y) YES=true ;;
        --zone | --project) need_value "$@" && PLACE+=("$1=$2") && shift ;;
        --zone=?* | --project=?*) PLACE+=("$1") ;;
        -*) refuse "there is no option $1; --help shows them." ;;
        *) check_name "$1" && NAMES+=("$1") ;;
    esac
    shift
done
need_gcloud

delete() {
    run gcloud compute tpus queued-resources delete "$1" "${PLACE[@]}" --force
}

if $DRY_RUN; then
    typed gcloud compute tpus queued-resources list "${PLACE[@]}" \
        --format='csv[no-heading](name.basename(),state.state,tpu.nodeSpec[0].node.labels.jaxft)'
    echo '# then, of those with a label:'
    for name in ${NAMES[@]+"${NAMES[@]}"}; do delete "$name"; done
    [[ ${#NAMES[@]} -gt 0 ]] || delete NAME
    exit 0
fi

THERE=$(labelled)
CHOSEN=()
if [[ ${#NAMES[@]} -eq 0 ]]; then
    while read -r name _; do [[ -z $name ]] || CHOSEN+=("$name"); done <<< "$THERE"
    if [[ ${#CHOSEN[@]} -eq 0 ]]; then
        say 'there is nothing to delete here.'
        exit 0
    fi
fi
for name in ${NAMES[@]+"${NAMES[@]}"}; do
    awk -v name="$name" '$1 == name { found = 1 } END { exit !found }' <<< "$THERE" ||
        refuse "no TPU '$name' that tpu/create.sh made is here; it made: $(awk '{ print $1 }' <<< "$THERE" | xargs)."
    CHOSEN+=("$name")
done
for name in "${CHOSEN[@]}"; do awk -v name="$name" '$1 == name' <<< "$THERE"; done

if ! $YES; then
    [[ -t 0 ]] || refuse 'there is no terminal to ask at; --yes deletes without asking.'
    read -r -p "Delete ${#CHOSEN[@]}? [y/N] " answer
    [[ $answer == [yY]* ]] || exit 1
fi
for name in "${CHOSEN[@]}"; do delete "$name"; done
