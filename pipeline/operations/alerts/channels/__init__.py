"""The ways by which messages leave: e-mail, webhook, log. Each takes a message and raises where it was not taken.

TransientError: a later attempt may succeed; ConfigurationError: the settings are wrong; PermanentError: the receiver
refuses. No error shows a secret, nor an address that may hold one.
"""
