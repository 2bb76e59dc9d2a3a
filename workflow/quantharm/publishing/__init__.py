"""Publishing: a section for the model card of a quantized model, metadata for a hub, a badge.

It repeats figures of finished results and adds none.
"""
