#!/usr/bin/env bash
# tpu/worker.sh ARGUMENT ...
#
# What run.sh starts on each worker: end what an earlier start left behind, since a TPU serves one
# process, then `jaxft train ARGUMENT ...`. The output goes to jaxft.log in the home folder too.
#
#   --stop     only ask a run that is under way to save and end
#   --dry-run  print the command and run none
#   --help
set -euo pipefail
# shellcheck source=tpu/lib.sh
source "$(dirname "$0")/lib.sh"
HERE=$(cd "$(dirname "$0")/.." && pwd)
PID_FILE=$HERE/../jaxft.pid GRACE=${TPU_GRACE:-60}

under_way() { [[ -n $1 ]] && grep -qs jaxft "/proc/$1/cmdline"; }

# The run of an earlier start: first asked, so that it saves, then made to end.
stop_earlier() {
    local pid seconds
    pid=$(cat "$PID_FILE" 2> /dev/null) || return 0
    under_way "$pid" || return 0
    kill -TERM "$pid" || true
    for ((seconds = 0; seconds < GRACE; seconds++)); do
        under_way "$pid" || return 0
        sleep 1
    done
    kill -KILL -- "-$(ps -o pgid= -p "$pid" | tr -d ' ')" || true
}

case ${1:-} in
    --help | -h) show_help ;;
    --stop)
        pid=$(cat "$PID_FILE" 2> /dev/null) || exit 0
        if under_way "$pid"; then kill -TERM "$pid"; fi
        exit 0
        ;;
    --dry-run)
        typed "$HERE/.venv/bin/jaxft" train "${@:2}"
        exit 0
        ;;
    '') refuse 'give a config; --help shows how.' ;;
esac
cd "$HERE"
[[ -x .venv/bin/jaxft ]] || refuse "jaxft is not installed in $HERE; run.sh does so without --no-install."
stop_earlier
echo $$ > "$PID_FILE"
export PYTHONUNBUFFERED=1
exec .venv/bin/jaxft train "$@" > >(exec tee ../jaxft.log) 2>&1
