"""A module of an optional library that cannot be imported."""

raise ImportError("broken")
