# shellcheck shell=bash
# What the scripts of this folder share; sourced, never run. It keeps to bash 3.2, which macOS has.

DRY_RUN=false
# Where the TPU is. Without --zone and --project gcloud's own config decides.
PLACE=(--quiet)
# shellcheck disable=SC2034
POLL=${TPU_POLL:-15} # seconds between two looks at a state

# What a person should know, apart from what the commands print.
say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# What a person gave is wrong: one sentence, and the code that jaxft has for it.
refuse() {
    say "$*"
    exit 2
}

# The script's head comment is its help.
show_help() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit 0
}

# need_value OPTION VALUE: an option has to have one.
need_value() {
    [[ $# -ge 2 && -n $2 && $2 != --* ]] || refuse "$1 needs a value; --help shows them."
}

need_number() {
    need_value "$@"
    [[ $2 =~ ^[0-9]+$ ]] || refuse "$1 needs a whole number, not '$2'."
}

# A TPU's name, which is also the value of its label.
check_name() {
    [[ -n ${1:-} ]] || refuse "give the TPU's name; --help shows how."
    [[ $1 =~ ^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$ ]] ||
        refuse "'$1' cannot be a TPU's name: lower-case letters, digits and '-', a letter first."
}

# A command as it can be typed.
typed() {
    local word line=''
    for word in "$@"; do
        if [[ ! $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
            word=$(printf '%s' "$word" | sed "s/'/'\\\\''/g")
            word="'$word'"
        fi
        line="$line${line:+ }$word"
    done
    printf '%s\n' "$line"
}

# Run a command, or print it under --dry-run.
run() {
    if $DRY_RUN; then typed "$@"; else "$@"; fi
}

need_gcloud() {
    $DRY_RUN || command -v gcloud > /dev/null ||
        refuse "there is no gcloud on the PATH; install it from https://cloud.google.com/sdk/docs/install."
}

# field NAME FORMAT: of the queued resource; fails where there is none.
field() { gcloud compute tpus queued-resources describe "$1" "${PLACE[@]}" --format="$2" 2> /dev/null; }

# node_state NAME: of the TPU itself, such as READY or PREEMPTED; fails where there is none.
node_state() {
    gcloud compute tpus tpu-vm describe "$1" "${PLACE[@]}" --format='value(state)' 2> /dev/null
}

# The label that create.sh writes; empty for what another made.
label_of() { field "$1" 'value(tpu.nodeSpec[0].node.labels.jaxft)'; }

# Every queued resource with the label, as lines of name and state.
labelled() {
    gcloud compute tpus queued-resources list "${PLACE[@]}" \
        --format='csv[no-heading](name.basename(),state.state,tpu.nodeSpec[0].node.labels.jaxft)' |
        awk -F, '$3 != "" { print $1, $2 }'
}
