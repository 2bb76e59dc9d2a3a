"""Gating: a budget's limits, the figures that they are on, verdicts, and the method to ship."""
