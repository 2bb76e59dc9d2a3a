"""Charts of the report: one module a theme, and the look that all of them share.

The same figures as tables are in reporting/tables.
"""
