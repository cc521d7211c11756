#!/usr/bin/env bash
# The Pythons of this machine that softjax supports, a line each: version and path, the oldest first.
set -euo pipefail
oldest=$(sed -n 's/^requires-python = ">=\(.*\)"$/\1/p' "$(dirname "$0")/../pyproject.toml")
version='import sys; print("%d.%d" % sys.version_info[:2], sys.executable)'
{
    IFS=:
    for folder in $PATH ${PYENV_ROOT:-$HOME/.pyenv}/versions/*/bin; do
        for python in "$folder"/python3 "$folder"/python3.[0-9]*; do
            # Some are names without a Python behind them, or have a suffix such as -config.
            [[ $python =~ [0-9]$ && -x $python ]] && "$python" -c "$version" 2>/dev/null || true
        done
    done
} | sort -t ' ' -k 1,1V -u | while read -r found path; do
    [ "$(printf '%s\n' "$oldest" "$found" | sort -V | head -n 1)" = "$oldest" ] && echo "$found $path" || true
done
