"""Checks: tests that a cell must pass before its figures are believed, one function each, in a module for each subject.

The stage `checks` runs them. A check measures one value, compares it with a limit, and explains both in words.
"""
