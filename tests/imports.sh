#!/usr/bin/env bash
# Installs softjax, as users do, with every Python of this machine that it supports, and takes a gradient.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
pythons=$(bash "$here/pythons.sh")
case $(tail -n 1 <<< "$pythons") in 3.11*) echo "There is no Python newer than 3.11 on this machine: none was tried." ;; esac
while read -r version python; do
    folder=$(mktemp -d)
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$here/.."
    (cd "$folder" && bin/python "$here/imported.py" "$version")
    rm -rf "$folder"
done <<< "$pythons"
