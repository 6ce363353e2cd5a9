"""Wakes what is due."""
