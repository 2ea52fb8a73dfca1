-- Codes without a concept that are new.
-- reads: met_coding
INSERT INTO unmapped_coding (coding_id, resource_type, element, system, code, display)
SELECT coding_id, resource_type, element, system, code, display FROM pg_temp.met_coding
ON CONFLICT DO NOTHING
