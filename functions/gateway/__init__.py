"""The HTTP API, and the console in front of it."""
