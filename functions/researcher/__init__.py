"""Researcher: answers one question from brief, documents and pages, with evidence, and says what they leave open."""
