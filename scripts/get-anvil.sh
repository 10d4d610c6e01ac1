#!/bin/sh
# Puts anvil, Foundry's development node, into .anvil, which git ignores. Its program is a file of the package for this
# machine; no script of the packages is run. `make anvil` calls this.
set -eu
cd "$(dirname "$0")/.."
VERSION=1.7.1
LINUX_AMD64=10c1c727d6c1de973aeb160e59875b9a9a23464d6e74149ee8abb30b3500311b
if ! command -v npm >/dev/null; then
    echo "anvil comes by npm, which is missing: install Node.js, then run this again" >&2
    exit 1
fi
mkdir -p .anvil
npm install --prefix .anvil --no-save --no-package-lock --no-audit --no-fund --ignore-scripts --silent \
    "@foundry-rs/anvil@$VERSION"
for program in .anvil/node_modules/@foundry-rs/anvil-*-*/bin/anvil; do
    [ -x "$program" ] || { echo "there is no anvil for this machine in its packages" >&2; exit 1; }
    case "$program" in *linux-amd64*)
        echo "$LINUX_AMD64  $program" | sha256sum --check --quiet || { rm -f "$program"; exit 1; } ;;
    esac
    "$program" --version
done
