#!/usr/bin/env bash
# One command that proves or refutes memsup on this machine's GPU, without a network, in at most 14 minutes:
#
#     bash benchmarks/gpu/prove.sh [--rehearse [--quick]] [--only LETTERS] [--within SECONDS] [--power-cap]
#
# Leaves proof.json and proof.txt in $OUT (build/gpu/out where that is unset). README.md beside this file has the rest.
# This script only lays out what the machine lacks: the packages that wheels.sh collected, and memsup's folders under the names
# by which they are imported (an installation would need a newer setuptools than such a machine may have).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
wheels=${WHEELS:-$root/build/gpu/wheels}
export OUT=${OUT:-$root/build/gpu/out}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python=${PYTHON:-python3}
rehearses=no
for word in "$@"; do [ "$word" = --rehearse ] && rehearses=yes; done
if [ $rehearses = yes ] && [ -z "${PYTHON:-}" ] && [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python; fi

mkdir -p "$work/site" "$work/links/memsup"
for package in supervisor worker shared checkpoint; do ln -s "$root/$package" "$work/links/memsup/$package"; done
for file in "$root"/program/*; do ln -s "$file" "$work/links/memsup/"; done  # memsup itself, for programs that call it
if ! "$python" -c 'import msgspec, structlog, zmq' 2> /dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" "$wheels"/*.whl
    tar -xzf "$wheels/reviews.tar.gz" -C "$work/site"
fi
paths=$work/links:$work/site
if [ $rehearses = yes ] && [ -d "$root/build/gpu/rehearsal" ]; then paths=$paths:$root/build/gpu/rehearsal; fi

export PYTHONPATH="$paths${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
for name in $(compgen -e | grep '^MEMSUP_' || true); do unset "$name"; done

"$python" "$here/prove.py" "$@"
