"""Runs as jobs of a Ray cluster: what is sent, how it starts there, and how it is followed."""
