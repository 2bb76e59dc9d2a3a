"""Forensics: is a checkpoint what it is said to be? Manifests, hashes, traces in weights, behaviour, a cell's checks.

For the stages `integrity`, `monitor` and `checks`; all but the checks also serve a folder that somebody handed over.
"""
