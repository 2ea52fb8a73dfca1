"""SQL on FHIR ViewDefinitions and their FHIRPath, compiled to Python. Knows nothing of Epic, of OMOP or of this pipeline."""
