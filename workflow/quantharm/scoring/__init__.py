"""Scoring: forward passes, the baseline's stored logits, KL divergence position by position.

What is measured of a model's distributions; how fast it is belongs in speed/.
"""
