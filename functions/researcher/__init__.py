"""Researcher: answers one question from the brief, with evidence, and says what the brief leaves open."""
