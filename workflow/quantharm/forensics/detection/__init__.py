"""Traces of quantization in weights that are said never to have been quantized."""
