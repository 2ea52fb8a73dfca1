"""FHIR as text and values: lines, NDJSON, identity, dates, hashes. Opens no file and knows no OMOP."""
