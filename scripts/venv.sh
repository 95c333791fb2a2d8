# Read by scripts/demo and scripts/test: a virtual environment that is made once and used again.
# shellcheck shell=bash

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# The first Python here that is new enough.
find_python() {
    local name
    for name in python3 python3.11 python3.12 python3.13; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "Python 3.11 or later with venv is needed (Debian: apt-get install python3 python3-venv)." >&2
    return 1
}

# make_venv DIRECTORY PIP_ARGUMENT...: a virtual environment in which `pip install PIP_ARGUMENT...` was carried out.
# It is used again while the arguments, pyproject.toml, the interpreter and the directory's place are the same.
make_venv() {
    local directory=$1 python stamp
    shift
    python=$(find_python)
    stamp=$({ echo "$PWD" "$directory" "$@"; "$python" -VV; cat pyproject.toml; } | "$python" -c \
        'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    if [ "$(cat "$directory/.stamp" 2>/dev/null)" = "$stamp" ] &&
        "$directory/bin/python" -P -c 'import crmbackup' 2>/dev/null; then
        return
    fi
    echo "Making $directory (once; this takes a minute) ..."
    "$python" -m venv --clear "$directory"
    # --group came with pip 25.1.
    "$directory/bin/python" -m pip install -q --upgrade 'pip>=25.1'
    "$directory/bin/python" -m pip install -q "$@"
    echo "$stamp" >"$directory/.stamp"
}
