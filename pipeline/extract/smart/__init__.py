"""SMART Backend Services: keys, signed tokens, sessions."""
