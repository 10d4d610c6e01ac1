#!/bin/sh
# Checks, before anything is installed, for what pip cannot bring: libp2p needs fastecdsa, which has no wheels
# and compiles against libgmp.
missing=""
command -v gcc >/dev/null 2>&1 || missing="$missing gcc"
command -v make >/dev/null 2>&1 || missing="$missing make"
if command -v gcc >/dev/null 2>&1; then
    printf '#include <gmp.h>\nint main(void){return 0;}\n' | gcc -x c -fsyntax-only - 2>/dev/null || missing="$missing libgmp-dev"
fi
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null 2>&1; then
    missing="$missing python3 python3-venv python3-dev"
else
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || {
        echo "p2pcompute needs Python 3.11, 3.12 or 3.13; $("$python" --version) was found. Set PYTHON=/path/to/python3.11 and run make again." >&2
        exit 1
    }
    "$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
    "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || missing="$missing python3-dev"
fi
if [ -n "$missing" ]; then
    echo "p2pcompute needs Debian packages that are not installed. Run:" >&2
    echo "    sudo apt-get install -y$missing" >&2
    exit 1
fi
