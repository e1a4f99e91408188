"""From bytes of a request to bytes of an answer."""
