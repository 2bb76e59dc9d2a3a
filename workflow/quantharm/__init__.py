"""quantharm: what quantization does to a language model, measured. One module a stage."""

import gc
import sys

# A stage starts: torch and transformers make objects by the million and no garbage; looking for it takes a second.
if sys.argv[0] == "-m":
    gc.set_threshold(100_000)
