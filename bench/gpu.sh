#!/usr/bin/env bash
# Check fmkit on a GPU and measure it, in at most seven minutes, then make a record.
#
#   bench/gpu.sh FOLDER [--carried CARRIED] [--small] [--only STEP ...] [--seconds N]
#
# bench/_gpu.py says what goes into FOLDER and what the options do. Nothing is fetched.
# On a machine without a network CARRIED has what is missing: CARRIED/wheels the wheels
# that bench/gpu.txt names, and CARRIED/assets published files that `fmkit info` lists,
# of which cifar10-jpeg.zip may be gzipped. For Python 3.12 on Linux the wheels come from
#
#   python -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
#       --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
#       --platform manylinux2014_x86_64 -c constraints.txt -r bench/gpu.txt \
#       -d CARRIED/wheels
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
carried=""
for ((i = 1; i < $#; i++)); do
  [ "${!i}" != --carried ] || { i=$((i + 1)) && carried=$(cd "${!i}" && pwd); }
done

export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PIP_NO_INDEX=1
if [ -n "$carried" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  echo "installing the wheels in $carried/wheels: about 15 s"
  "$python" -m pip install --quiet --no-deps --no-compile --no-cache-dir \
    --find-links "$carried/wheels" --target "$site" "$carried"/wheels/*.whl
  export PYTHONPATH=$site:$PYTHONPATH
  if [ -f "$carried/assets/cifar10-jpeg.zip.gz" ]; then
    gunzip --keep --force "$carried/assets/cifar10-jpeg.zip.gz"
  fi
  [ ! -d "$carried/assets" ] || export FMKIT_MIRROR=$carried/assets
fi
"$python" -m bench._gpu "$@"
