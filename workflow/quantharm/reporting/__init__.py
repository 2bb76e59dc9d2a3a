"""Reporting: finished results read, judged, and put into tables, charts and words."""
