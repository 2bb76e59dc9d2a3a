"""Tables of the report: one module a theme, and the Table that all of them fill.

A column carries how its value is got, shown and exported.
"""
