"""Bytes to tensors and back, one format a module; what several of them are made of is in the folders."""
