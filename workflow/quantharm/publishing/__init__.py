"""Publishing: a section for the model card of a quantized model, metadata for a hub, a badge."""
