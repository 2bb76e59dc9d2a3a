"""Speed: greedy decoding, the benchmark of prefill and decode, CUDA graphs, meters of the device.

Measurements with a clock belong here; those of a model's distributions, in scoring/.
"""
