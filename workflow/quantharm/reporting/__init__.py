"""Reporting: finished results read, judged, and put into tables, charts and words.

It measures nothing. The page's templates are in workflow/report/templates.
"""
