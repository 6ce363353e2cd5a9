"""Keeps messages that nobody could handle."""
