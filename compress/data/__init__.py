"""Data sets, their splits and their preprocessing."""
