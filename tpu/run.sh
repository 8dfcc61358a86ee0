#!/usr/bin/env bash
# tpu/run.sh NAME [OPTIONS] -- CONFIG [KEY=VALUE ...]
#
# Copy this project to every worker of a TPU, install it there, and run `jaxft train CONFIG ...` on
# all of them at once. Worker 0 is shown; each worker's output goes to a file. A run that a lost
# worker ended is started again with --resume, under the same name.
#
#   --with PATH        copy this part of assets/ too (may be given again); links are followed
#   --env NAME         hand this variable of yours to the workers, such as HF_TOKEN
#   --install COMMAND  how to install, in the project's folder on a worker
#   --no-install       run what an earlier call installed
#   --restarts N       at most so many times (10)
#   --recreate         make a TPU that was taken away again by create.sh, which gets:
#   --type TYPE, --spot, --runtime VERSION
#   --logs FOLDER      of the workers' outputs (tpu-logs/NAME)
#   --zone ZONE        gcloud's compute/zone by default
#   --project PROJECT  gcloud's project by default
#   --dry-run          print the commands and run none
#   --help
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
HERE=$(cd "$(dirname "$0")" && pwd)
PROJECT=$(dirname "$HERE")

NAME='' WITH=() SECRETS=() INSTALL='' NO_INSTALL=false RESTARTS=10 RECREATE=false CREATE=() LOGS='' TRAIN=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --help | -h) show_help ;;
        --dry-run) DRY_RUN=true ;;
        --with) need_value "$@" && WITH+=("$2") && shift ;;
        --env) need_value "$@" && SECRETS+=("$2") && shift ;;
        --install) need_value "$@" && INSTALL=$2 && shift ;;
        --no-install) NO_INSTALL=true ;;
        --restarts) need_number "$@" && RESTARTS=$2 && shift ;;
        --recreate) RECREATE=true ;;
        --type | --runtime) need_value "$@" && CREATE+=("$1" "$2") && shift ;;
        --spot) CREATE+=(--spot) ;;
        --logs) need_value "$@" && LOGS=$2 && shift ;;
        --zone | --project) need_value "$@" && PLACE+=("$1=$2") && shift ;;
        --zone=?* | --project=?*) PLACE+=("$1") ;;
        --) shift && TRAIN=("$@") && break ;;
        -*) refuse "there is no option $1; what jaxft train takes stands behind '--'." ;;
        *) [[ -z $NAME ]] || refuse "what jaxft train takes stands behind '--': -- $1." && NAME=$1 ;;
    esac
    shift
done

# -------------------------------------------- What can be wrong is found before anything is copied
check_name "$NAME"
[[ ${#TRAIN[@]} -gt 0 ]] || refuse "give the config behind '--': tpu/run.sh $NAME -- configs/sentiment.yaml."
[[ -f $PROJECT/${TRAIN[0]} ]] || refuse "there is no config ${TRAIN[0]} in $PROJECT."
for path in ${WITH[@]+"${WITH[@]}"}; do
    [[ -e $PROJECT/$path ]] || refuse "--with: there is no $path in $PROJECT."
done
for name in ${SECRETS[@]+"${SECRETS[@]}"}; do
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ && -n ${!name:-} ]] || refuse "--env: $name is not set here."
done
KEPT=false
for word in "${TRAIN[@]}"; do
    case $word in
        --overwrite) refuse '--overwrite would delete the run at each restart; give another run.name=.' ;;
        run.dir=gs://* | run.dir=/*) KEPT=true ;;
    esac
done
if $RECREATE; then
    [[ " ${CREATE[*]-} " == *' --type '* ]] || refuse '--recreate needs --type, and --spot where it was.'
    $KEPT || grep -q 'gs://' "$PROJECT/${TRAIN[0]}" ||
        refuse '--recreate needs a run folder that outlives the machines: run.dir=gs://BUCKET/runs.'
fi
need_gcloud
LOGS=${LOGS:-$PROJECT/tpu-logs/$NAME}
# The machines of some TPUs have Python 3.10, so uv brings a newer one where there is none.
# A machine that is created again after weeks has the versions that began the run.
INSTALL=${INSTALL:-"export PIP_BREAK_SYSTEM_PACKAGES=1 && python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --allow-existing --python '>=3.11' .venv && \
python3 -m uv pip install --quiet --python .venv/bin/python --constraint requirements/run.txt \
--editable '.[tpu,gcs]'"}

# --------------------------------------------------------------------------------- The three steps
# on_all COMMAND [FLAG ...]: on every worker.
on_all() {
    run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" --worker=all "${@:2}" --command="$1"
}

copy() {
    local folder=${TMPDIR:-/tmp} archive
    $DRY_RUN || folder=$(mktemp -d "$folder/jaxft.XXXXXX")
    archive=$folder/jaxft.tar.gz
    run env COPYFILE_DISABLE=1 tar -czhf "$archive" -C "$PROJECT" --exclude=./runs --exclude=./assets \
        --exclude='./.*' --exclude=./tpu-logs --exclude=./build --exclude='*.egg-info' \
        --exclude=__pycache__ . ${WITH[@]+"${WITH[@]}"} &&
        run gcloud compute tpus tpu-vm scp "$archive" "$NAME:jaxft.tar.gz" "${PLACE[@]}" --worker=all &&
        on_all "mkdir -p jaxft && \
find jaxft -mindepth 1 -maxdepth 1 ! -name .venv ! -name runs -exec rm -rf {} + && \
tar -xzf jaxft.tar.gz -C jaxft" || return
    $DRY_RUN || rm -rf "$folder"
}

prepare() { copy && { $NO_INSTALL || on_all "cd jaxft && $INSTALL"; }; }

# train FOLDER [--resume]: on all workers, their outputs into FOLDER; its status is the first bad.
train() {
    local variables=${SECRETS[0]+env } name
    for name in ${SECRETS[@]+"${SECRETS[@]}"}; do
        if $DRY_RUN; then variables+="$name=... "; else variables+="$(typed "$name=${!name}") "; fi
    done
    on_all "${variables}bash jaxft/tpu/worker.sh $(typed "${TRAIN[@]}" "${@:2}")" --output-directory="$1"
}

resumed() { [[ " ${TRAIN[*]} " == *' --resume '* ]] || echo --resume; }

if $DRY_RUN; then
    prepare
    train "$LOGS/0"
    echo '# after a lost worker:'
    if $RECREATE; then
        "$HERE/delete.sh" "$NAME" "${PLACE[@]:1}" --yes --dry-run | sed 1,2d
        "$HERE/create.sh" "$NAME" "${PLACE[@]:1}" "${CREATE[@]}" --dry-run
        prepare
    fi
    # shellcheck disable=SC2046
    train "$LOGS/1" $(resumed)
    exit 0
fi

# ------------------------------------------------------------------- One start, watched to its end
RUNNING='' SHOWN=''

end_shown() {
    [[ -z $RUNNING ]] || kill -- "-$RUNNING" 2> /dev/null || true
    [[ -z $SHOWN ]] || kill -- "-$SHOWN" 2> /dev/null || true
    RUNNING='' SHOWN=''
}

stop() {
    trap '' INT TERM
    say 'stopping: the workers save and end; the same command with --resume goes on.'
    on_all 'bash jaxft/tpu/worker.sh --stop' > /dev/null 2>&1 || true
    if [[ -n $RUNNING ]]; then
        for ((i = 0; i < 60; i++)); do
            kill -0 "$RUNNING" 2> /dev/null || break
            sleep 1
        done
    fi
    end_shown
    exit 130
}
trap stop INT TERM
trap end_shown EXIT

# attend FOLDER [--resume]: train, show worker 0, and end early where the TPU itself is gone.
attend() {
    local code=0 looked=$SECONDS state
    rm -rf "$1" && mkdir -p "$1"
    set -m # each in a process group of its own, so that it can be ended with what it started
    train "$@" &
    RUNNING=$!
    tail -n +1 -F "$1/0.log" 2> /dev/null &
    SHOWN=$!
    set +m
    while kill -0 "$RUNNING" 2> /dev/null; do
        sleep 1
        if [[ $((SECONDS - looked)) -ge $POLL ]]; then
            looked=$SECONDS
            # An ssh to a machine that is gone may hang for hours.
            if state=$(node_state "$NAME") && [[ $state != READY ]]; then
                say "$NAME is $state"
                kill -- "-$RUNNING" 2> /dev/null || true
            fi
        fi
    done
    wait "$RUNNING" || code=$?
    RUNNING=''
    sleep 1 # the last lines
    end_shown
    return "$code"
}

show_others() {
    local file
    for file in "$1"/*.log; do
        [[ -s $file && $file != */0.log ]] || continue
        printf -- '-- worker %s: %s\n' "$(basename "$file" .log)" "$file" >&2
        tail -n 3 "$file" >&2
    done
}

# A TPU that was taken away: what is left of it goes, and it is asked for again.
make_again() {
    local request
    if request=$(field "$NAME" 'value(state.state)'); then
        case $request in
            ACTIVE | FAILED | SUSPENDING | SUSPENDED)
                "$HERE/delete.sh" "$NAME" "${PLACE[@]:1}" --yes || return ;;
        esac
    fi
    "$HERE/create.sh" "$NAME" "${PLACE[@]:1}" "${CREATE[@]}"
}

state_now() { node_state "$NAME" || echo gone; }

# --------------------------------------------------------------------------------------- The story
STATE=$(state_now)
if [[ $STATE != READY ]]; then
    $RECREATE || refuse "$NAME is $STATE; tpu/create.sh makes it, or --recreate here."
    make_again
fi
prepare
START=0 RESUME='' THERE=true
while :; do
    CODE=0
    if $THERE; then
        # shellcheck disable=SC2086
        attend "$LOGS/$START" $RESUME || CODE=$?
        [[ $CODE -ne 0 ]] || exit 0
    elif make_again && prepare; then
        THERE=true
        continue
    else
        CODE=1
    fi
    STATE=$(state_now)
    say "the run ended with code $CODE; $NAME is $STATE"
    ! $THERE || show_others "$LOGS/$START"
    if [[ $STATE == READY && $CODE -eq 2 ]]; then
        say 'what was given is wrong (above), so it is not started again.'
        exit 2
    fi
    if [[ $STATE != READY ]]; then
        $RECREATE || { say 'with --recreate --type TYPE it would be made again, and the run go on.' && exit 1; }
        THERE=false
    fi
    [[ $START -lt $RESTARTS ]] || { say "it was started again $RESTARTS times; --restarts allows more." && exit 1; }
    START=$((START + 1)) RESUME=$(resumed)
    WAIT=$((${TPU_BACKOFF:-15} * (1 << (START < 6 ? START : 6)))) # half a minute, a minute, to 16
    say "start $((START + 1)) follows in $WAIT s"
    sleep "$WAIT"
done
