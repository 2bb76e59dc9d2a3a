"""Config: the configuration, checked and completed; the resources of jobs; the files that a stage is made of.

Needs no ML library: the workflow imports it.
"""
