"""Forensics: is a checkpoint what it is said to be? Manifests, hashes, traces in the weights, behaviour.

The stage `integrity` asks them; each also serves a checkpoint that somebody handed over.
"""
