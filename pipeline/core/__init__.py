"""What every stage may use and what knows none of them: errors, clock, settings as plain data, logs, files.

Not here: anything that knows FHIR, OMOP, a database or a site's server.
"""
