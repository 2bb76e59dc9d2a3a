"""Common: what any stage or room may use, and that knows nothing of models or methods.

Command line of a stage, errors, files, text, prompts, statistics, provenance.
"""
