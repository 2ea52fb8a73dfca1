"""Dagster's UI as a person uses it, in a real Chromium."""
