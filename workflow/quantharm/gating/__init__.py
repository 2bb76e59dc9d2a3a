"""Gating: a budget's limits, the figures that they are on, verdicts, and the method to ship.

It reads finished results alone; what a limit means in words belongs in reporting/.
"""
