"""quantharm: what quantization does to a language model, measured. One module a stage."""

import gc
import os
import sys


def end_in_words(kind, error, traceback):
    """An excepthook that answers Ctrl-C with a sentence, also while libraries are imported, which takes seconds."""
    if issubclass(kind, KeyboardInterrupt):
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


# A stage starts: torch and transformers make objects by the million and no garbage; looking for it takes 0.7 seconds
# of each stage's 5, measured with the stage `checks`.
if sys.argv[0] == "-m":
    gc.set_threshold(100_000)
    sys.excepthook = end_in_words
    if "QUANTHARM_WARM_START" in os.environ:
        from quantharm.common.warm_start import hand_over

        hand_over()
