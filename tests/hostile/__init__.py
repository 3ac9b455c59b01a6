"""Hostile answers: a grammar and hypothesis strategies that make them, and a watch that sees what they do."""
