"""The simulated Epic: a real HTTP server, and the synthetic patients that it serves. Only commands import it."""
