"""The commit of this package, as records state it."""

import functools
import os
import subprocess
from pathlib import Path


@functools.cache
def git_commit() -> str | None:
    """The commit of the checkout that tracks this package, `-dirty` where files or modules differ; None without one.

    Stages ask when they begin, as the modules that they run are those of that moment. A package that was unpacked
    inside another project's checkout has no commit. Modules that git does not track run as well, ignored or not.
    """
    here, root = Path(__file__), Path(__file__).parents[3]
    if git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    untracked = git(root, "ls-files", "--others", "--", "Snakefile", "workflow/*.py", "workflow/*.smk")
    return f"{commit}-dirty" if commit and untracked and not commit.endswith("-dirty") else commit


def git(folder: Path, *words: str) -> str | None:
    """What git says of the checkout around a folder; None where it fails.

    Within a hook the environment names the repository that the hook is of. A checkout that somebody else owns may be
    asked, too, if it is this package's.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", f"safe.directory={Path(__file__).parents[3]}", *words]
    try:
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()
