"""How readings and requests are published."""
