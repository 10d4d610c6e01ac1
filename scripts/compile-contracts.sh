#!/bin/sh
# Compiles the contracts into p2pcompute/chain/artifacts. Run it after every change to a .vy file.
#
# The compiler lives in a virtual environment of its own, .venv-vyper: it needs an older cbor2 than the node does.
#
#   scripts/compile-contracts.sh            compile and write the artefacts
#   scripts/compile-contracts.sh --venv     only set up .venv-vyper, so that the tests can recompile
#   scripts/compile-contracts.sh --check    compile and fail where the artefacts differ from what comes out
set -eu
cd "$(dirname "$0")/.."
version=0.4.3
venv=.venv-vyper
stamp="$venv/.vyper-$version"
if [ ! -e "$stamp" ]; then
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "vyper==$version" "cbor2==5.9.0"
    touch "$stamp"
fi
[ "${1:-}" = --venv ] && exit 0
exec "$venv/bin/python" p2pcompute/chain/contracts/compile.py "$@"
