"""Tells whoever asked for a workflow that it has ended."""
