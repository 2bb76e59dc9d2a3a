"""Models: checkpoints and tokenizers as they are loaded, shapes of published models, the hub, GPUs that a job takes.

What a method does to a model's matrices belongs in quantizers/.
"""
