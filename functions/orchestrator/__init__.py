"""Moves workflows on as their steps end."""
