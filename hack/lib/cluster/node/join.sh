#!/usr/bin/env bash
# join.sh CGROUP_PROCS... -- COMMAND...: joins the control groups, then becomes the command.
set -eu
while [[ "$1" != -- ]]; do
    echo $$ >"$1"
    shift
done
shift
exec "$@"
