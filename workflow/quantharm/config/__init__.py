"""Config: the configuration, checked and completed; what jobs ask for; which files a stage is made of.

Needs no ML library: the workflow imports it.
"""
