"""Processes: how the server starts, is supervised, and ends."""
