"""log p(x) between bounds, from below and from above."""
