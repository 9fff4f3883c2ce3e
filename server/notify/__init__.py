"""Telling agents to look: the spread, the rounds and the open connections."""
