"""quantharm: what quantization does to a language model, measured. One module a stage."""

import gc
import os
import sys

OLDEST_PYTHON = (3, 11)


def end_in_words(kind, error, traceback):
    """An excepthook with a sentence for Ctrl-C, also while libraries are imported, and for one that is missing."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
    elif issubclass(kind, ModuleNotFoundError) and (error.name or "").partition(".")[0] != __name__:
        from quantharm.common.errors import PINS, first_line

        lacks = f"the interpreter {sys.executable} (`python:` in the config) lacks a module ({first_line(error)})"
        print(f"error: {lacks}; install {PINS} into it", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


# A stage starts: torch and transformers make objects by the million and no garbage; looking for it takes 0.7 seconds
# of each stage's 5, measured with the stage `checks`.
if sys.argv[0] == "-m":
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(
            f"error: the interpreter {sys.executable} (`python:` in the config) is Python {sys.version.split()[0]}; "
            f"name one of Python {'.'.join(map(str, OLDEST_PYTHON))} or newer"
        )
    gc.set_threshold(100_000)
    sys.excepthook = end_in_words
    if "QUANTHARM_WARM_START" in os.environ:
        from quantharm.common.warm_start import hand_over

        hand_over()
