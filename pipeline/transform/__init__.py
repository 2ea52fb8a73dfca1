"""Lines in, OMOP-shaped frames out: mappings, concepts, rules. No HTTP, no database."""
