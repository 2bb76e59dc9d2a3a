"""Records: a TypedDict a result file, one module a stage; a comment a key, with its unit where the name has none.

Other programs read these files: keys are added, never renamed. `NotRequired` marks what not every record has.
"""
