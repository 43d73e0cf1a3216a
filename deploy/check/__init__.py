"""Whether a bundle may ship: limits, what was seen, and a verdict that no noise decides."""
