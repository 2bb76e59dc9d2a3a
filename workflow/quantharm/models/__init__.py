"""Models: checkpoints and tokenizers as they are loaded, shapes of published models, the hub, GPUs that a job takes."""
