"""Mapping files: read with their places, a site's laid over the shared ones, checked types."""
