"""Bytes to tensors and back, one format a module."""
