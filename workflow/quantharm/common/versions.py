"""The versions of the libraries that run, as records state them."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import platform
import re
import sys
from pathlib import Path

PACKAGES = ["torch", "transformers", "tokenizers", "bitsandbytes", "autoawq", "gptqmodel", "compressed-tensors"]
PACKAGES += ["torchao", "gguf", "numpy", "scipy", "pyarrow"]
PACKAGES += ["kernels"]  # not of envs/; an interpreter that has it may multiply with other kernels
OF_SOME_METHODS = ["auto-round", "ik-llama-cpp-python", "xllamacpp", "optimum-quanto"]  # of other files in envs/
MODULES = {"autoawq": "awq", "compressed-tensors": "compressed_tensors"}  # where the name differs
ASSIGNED = re.compile(
    r"""^(?:__version__|version)\s*(?::[^=\n]+)?=\s*(?:\w+\s*=\s*)?["']([^"'\n]+)["']""", re.MULTILINE
)
VERSION_FILES = ("version.py", "_version.py", "__init__.py")  # of a package's folder


def version_of(package: str) -> str | None:
    """Version of a package: as installed, but of the module that runs where it says another; None where it is missing.

    A folder in PYTHONPATH may hold modules without a word on their version, in front of those that are installed. A
    module that this process has not imported is not imported for it: what it says is read from its files, since the
    cells of a run import different modules and are to record the same.
    """
    module = MODULES.get(package, package)
    running = getattr(sys.modules[module], "__version__", None) if module in sys.modules else written_version(module)
    try:
        stated = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return running
    return running if running and running.partition("+")[0] != stated.partition("+")[0] else stated


def written_version(module: str) -> str | None:
    """The version that the files of a module's folder assign, without importing it; None where none does."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return None
    for file in VERSION_FILES:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = Path(spec.origin).with_name(file).read_text(encoding="utf-8")
            if assigned := ASSIGNED.search(text):
                return assigned[1]
    return None


@functools.cache
def versions() -> dict[str, str]:
    """{package: version} of Python and of the installed ones among PACKAGES; the same for all cells of a run."""
    return {"python": platform.python_version()} | installed(PACKAGES)


def installed(packages: list[str]) -> dict[str, str]:
    """{package: version} of those that are there."""
    return {package: version for package in packages if (version := version_of(package))}
