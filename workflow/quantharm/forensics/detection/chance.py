"""From traced matrices to a traced checkpoint: how many of them false alarms explain."""

from scipy.special import bdtrc

# Of matrices never quantized, the share that is called dequantized: more than was ever seen (integrity_detection.md).
FALSE_ALARM_A_MATRIX = 0.01
FALSE_ALARM_A_CHECKPOINT = 0.001  # accepted


def chance_of(traced: int, scanned: int) -> float:
    """P(so many traces or more) in a checkpoint never quantized: binomial, FALSE_ALARM_A_MATRIX a matrix."""
    return float(bdtrc(traced - 1, scanned, FALSE_ALARM_A_MATRIX))


def is_dequantized(traced: int, scanned: int) -> bool:
    """Whether so many traces are too many for a checkpoint that was never quantized."""
    return traced > 0 and chance_of(traced, scanned) <= FALSE_ALARM_A_CHECKPOINT
