"""Common: code for every stage and room, which knows nothing of models or methods.

Command line of a stage, errors, files, text, prompts, statistics, provenance.
"""
