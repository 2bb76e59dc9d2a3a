#!/bin/sh
# build.sh PYTHON FOLDER REQUIREMENTS
# A virtual environment of what a file pins. FOLDER/installed.txt, the list of what was installed, is written last.
# -I: what lies in PYTHONPATH counts as installed for pip, which then leaves it out.
set -u
"$1" -m venv --clear "$2" &&
    "$2/bin/python" -I -m pip install --no-compile --disable-pip-version-check --requirement "$3" &&
    "$2/bin/python" -I -m pip freeze --disable-pip-version-check > "$2/installed.txt.part" &&
    mv "$2/installed.txt.part" "$2/installed.txt" && exit
echo "error: the environment of the model stages could not be built from $3; above is why, in pip's words. Without a" \
    "network see docs/offline.md, or name another interpreter: python: in the config"
exit 1
