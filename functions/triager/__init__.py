"""Triager: sorts a support ticket and drafts the answer to it, and revises the draft as a person decided."""
