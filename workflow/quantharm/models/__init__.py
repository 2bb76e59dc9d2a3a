"""Models: loading of checkpoints and tokenizers, their safety, devices and dtypes, the hub, GPUs that a job holds.

Code about one method's matrices belongs in quantizers/.
"""
