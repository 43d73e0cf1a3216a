"""Bundles over HTTP: the Open Inference Protocol v2. Imported by ``lightship serve`` alone."""
