"""Whether a checkpoint has more matrices with a trace than false alarms explain."""

from scipy.special import bdtrc

# Share of never-quantized matrices that are called dequantized; above every share seen (integrity_detection.md).
FALSE_ALARM_A_MATRIX = 0.01
FALSE_ALARM_A_CHECKPOINT = 0.001  # accepted


def chance_of(traced: int, scanned: int) -> float:
    """P(at least `traced` traces in a checkpoint never quantized): binomial, FALSE_ALARM_A_MATRIX a matrix."""
    return float(bdtrc(traced - 1, scanned, FALSE_ALARM_A_MATRIX))


def is_dequantized(traced: int, scanned: int) -> bool:
    """Whether a checkpoint has more traces than one that was never quantized would have."""
    return traced > 0 and chance_of(traced, scanned) <= FALSE_ALARM_A_CHECKPOINT
