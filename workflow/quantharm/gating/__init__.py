"""A budget: limits on what a method may cost, the figures that they are on, verdicts, and which method to ship."""
