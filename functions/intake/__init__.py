"""Turns requested and scheduled messages into workflows."""
