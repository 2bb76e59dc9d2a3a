"""What is published with a quantized model: a section for its model card, metadata for a hub, a badge."""
