"""Names and limits that several modules share."""

BASELINE = "baseline"  # the method that changes nothing
TEXT_CATEGORY = "text"  # of the evaluation text's windows in a trace, which stand outside the mean of categories
HEAD_FILE = "output_head.safetensors"  # beside the store whose hidden states it turns into logits
SELF_DIVERGENCE_LIMIT = 1e-5  # nats between two runs of one model on one machine
CORRUPTIONS = ("random_tokens", "repeated_token")  # of calibration samples, to see whether the checks notice them
