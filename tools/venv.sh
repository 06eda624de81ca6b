#!/bin/sh
# Create a virtual environment: venv.sh FOLDER [VERSION]. Uses a suitable Python from the
# PATH; if there is none, uv installs one.
set -eu
folder=$1
version=${2:-}
suits="import sys
version = '%d.%d' % sys.version_info[:2]
suits = (3, 11) <= sys.version_info < (3, 14) and '$version' in ('', version)
sys.exit(not suits)"
for name in ${version:+"python$version"} python3 python3.13 python3.12 python3.11 python; do
  if "$name" -c "$suits" 2>/dev/null; then
    echo "Setting up $folder with $name"
    exec "$name" -m venv "$folder"
  fi
done
chosen=${version:-3.13}
if command -v uv >/dev/null; then
  echo "Setting up $folder with Python $chosen from uv"
  uv python install --quiet "$chosen"
  exec uv venv --quiet --seed --allow-existing --python "$chosen" "$folder"
fi
echo "Python ${version:-3.11, 3.12 or 3.13} is needed and is not on the PATH: install uv" \
  "(https://docs.astral.sh/uv), then run: uv python install $chosen, and make again." >&2
exit 1
