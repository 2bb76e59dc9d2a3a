"""Scoring: forward passes, the baseline's stored logits, KL divergence position by position.

Measurements of a model's distributions belong here; those of its speed, in speed/.
"""
