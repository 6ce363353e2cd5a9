"""Scribe: writes a blameless postmortem from timeline and causes, and revises it after a critique or a person's comment."""
