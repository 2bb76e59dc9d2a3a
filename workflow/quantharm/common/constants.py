"""Names that several modules agree on."""

BASELINE = "baseline"  # the method that changes nothing
TEXT_CATEGORY = "text"  # of the evaluation text's windows in a trace, which stand outside the mean of categories
CORRUPTIONS = ("random_tokens", "repeated_token")  # of calibration samples, to see whether the checks notice them
