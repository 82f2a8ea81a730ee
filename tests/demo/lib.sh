# Shared by the two demos: numbered steps, indented output, expectations. Source it after tests/lib.sh.

bold='' plain=''
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
steps=0

# step TITLE: begins a step.
step() { printf '\n%s%d. %s%s\n\n' "$bold" $((++steps)) "$*" "$plain"; }

indent() { sed 's/^/   /'; }

# show COMMAND...: prints the command as a reader would type it, and runs it.
show() { printf '   $ %s\n' "$*"; "$@" 2>&1 | indent; }

# expect WHAT EXPECTED ACTUAL: fails if the two differ.
expect() { [ "$2" = "$3" ] || fail "$1: expected $2, got $3"; }
