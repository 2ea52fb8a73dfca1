"""Reads and searches: clients, crawls by patient list, references that lead nowhere."""
