"""Services outside the house that say which concepts a code has: how each is asked, and how patiently.

What they said is kept by `pipeline.warehouse.resolver_cache`; which codes they are asked about is decided in
`pipeline.load.resolving`. Only codes and their systems are sent, and displays where a setting says so.
"""
