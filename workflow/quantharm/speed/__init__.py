"""Speed: greedy decoding, the benchmark of prefill and decode, CUDA graphs, meters of the device.

What is measured with a clock; what a model answers belongs in scoring/.
"""
