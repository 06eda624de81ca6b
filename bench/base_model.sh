#!/usr/bin/env bash
# Train both base models of tools/base_model.py on a GPU, and pack what is to be kept.
#
#   bench/base_model.sh CARRIED OUT
#
# Nothing is fetched. CARRIED has corpus.safetensors.xz and, if packages are missing, a
# folder of wheels; results/README.md has the commands that make them. Into OUT go the
# records and the models, the large one in parts of 15 MiB that `cat` joins. If the time
# was not enough, the same command goes on from the checkpoints in runs/base. Set
# FMKIT_COMMIT to the commit if there is no checkout.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
carried=$(cd "$1" && pwd)
mkdir -p "$2" runs/base
out=$(cd "$2" && pwd)

export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
if [ -d "$carried/wheels" ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --target "$site" "$carried"/wheels/*.whl
  export PYTHONPATH=$site:$PYTHONPATH
fi
corpus=runs/base/corpus.safetensors
[ -f $corpus ] || xz --decompress --stdout "$carried/corpus.safetensors.xz" >$corpus

for size in ${SIZES:-small large}; do
  "$python" -m tools.base_model runs/base "$size"
  cp "runs/base/$size/record.json" "$out/base_$size.json"
  last=$(ls "runs/base/$size"/step-*.safetensors | tail -n 1)
  split --bytes=15M --numeric-suffixes --suffix-length=1 "$last" \
    "$out/base_$size.safetensors."
done
