"""Chronicler: takes an incident's timeline, impact and bright sides out of its notes, each with the words that bear it out."""
