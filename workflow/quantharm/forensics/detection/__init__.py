"""Traces of quantization in weights that are said never to have been quantized.

Weights that a method has packed are unpacked by quantizers/formats.
"""
