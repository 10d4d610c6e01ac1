#!/bin/sh
# Makes the environment of one peer that benchmarks/network.py stands beside: .peers/<name>, which git ignores.
# `make peer-env PEER=dask` calls this; without a name it lists them. An environment that is there is left as it is:
# remove it to have it made anew.
set -eu
cd "$(dirname "$0")/.."
folder=benchmarks/peers
all=$(for one in "$folder"/*/requirements.txt "$folder"/*/package.json; do basename "$(dirname "$one")"; done | sort | tr '\n' ' ')
peer=${1:-}
if [ -z "$peer" ] || ! { [ -f "$folder/$peer/requirements.txt" ] || [ -f "$folder/$peer/package.json" ]; }; then
    echo "which peer? one of: $all" >&2
    exit 2
fi
place=.peers/$peer
if [ -e "$place/.made" ]; then
    echo "$place is there"
    exit 0
fi
mkdir -p .peers
rm -rf "$place"
if [ -f "$folder/$peer/package.json" ]; then
    for program in node npm; do
        command -v "$program" >/dev/null || {
            echo "$program is missing. Run:" >&2
            echo "    sudo apt-get install -y nodejs npm" >&2
            exit 1
        }
    done
    mkdir -p "$place"
    cp "$folder/$peer/package.json" "$folder/$peer/package-lock.json" "$place/"
    npm ci --prefix "$place" --no-audit --no-fund --ignore-scripts --silent
else
    "${PYTHON:-python3}" -m venv "$place"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check -r "$folder/$peer/requirements.txt"
fi
touch "$place/.made"
echo "$place is made"
