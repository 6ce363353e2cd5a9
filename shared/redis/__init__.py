"""The way to a Redis server, for whatever keeps something there."""
