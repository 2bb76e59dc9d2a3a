"""The packages of the engines, where `make test` has installed them."""

import sys
from pathlib import Path

EXTRA = Path(__file__).parents[3] / ".venv-extra"

for name in ("llama-cpp", "quanto"):
    if (EXTRA / name / "installed.txt").is_file():
        sys.path.append(str(EXTRA / name))
