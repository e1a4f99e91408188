"""What the server says of itself while it runs."""
