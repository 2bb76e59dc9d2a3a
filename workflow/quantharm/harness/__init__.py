"""Harness: tasks of lm-evaluation-harness (imported as a library) on the models that this project loads.

lm_eval is imported by the two stages that need it, fetch_tasks and tasks, and by nothing else.
"""
