"""Getting resources out of a site: HTTP, SMART Backend Services, bulk exports, reads and searches.

Files go to `landing`, states to `warehouse`. Not here: what a resource means.
"""
