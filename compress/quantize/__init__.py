"""Fewer bits a weight, fewer bits an activation."""
