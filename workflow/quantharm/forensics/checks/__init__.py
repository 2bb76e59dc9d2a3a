"""Checks: tests that a cell must pass before its figures may be believed, one function each, by what they look at.

The stage `checks` runs them. A check measures one value, compares it with its limit and says in words what both mean.
"""
