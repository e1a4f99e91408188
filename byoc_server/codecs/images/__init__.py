"""Image files: what stands in their headers, and how pixels become values."""
