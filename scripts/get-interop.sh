#!/bin/sh
# Puts js-libp2p and what the JavaScript peer uses into tests/interop/js/node_modules, which git ignores, exactly as
# package-lock.json has them. No script of the packages is run. `make interop` calls this, and so does `make test`.
set -eu
cd "$(dirname "$0")/../tests/interop/js"
missing=""
command -v node >/dev/null 2>&1 || missing="$missing nodejs"
command -v npm >/dev/null 2>&1 || missing="$missing npm"
if [ -n "$missing" ]; then
    echo "the tests against js-libp2p need Debian packages that are not installed. Run:" >&2
    echo "    sudo apt-get install -y$missing" >&2
    exit 1
fi
node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' || {
    echo "the tests against js-libp2p need Node.js 20 or later; $(node --version) was found. Install a newer one, and run this again" >&2
    exit 1
}
# npm writes this file when everything is in its place
if [ node_modules/.package-lock.json -nt package-lock.json ]; then
    exit 0
fi
echo "installing js-libp2p into tests/interop/js/node_modules"
npm ci --no-audit --no-fund --ignore-scripts --silent
touch node_modules/.package-lock.json
