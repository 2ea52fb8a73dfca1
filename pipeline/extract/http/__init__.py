"""Requests to a site: checked addresses, limits, retries, pieces of files, and what is recorded of each request."""
