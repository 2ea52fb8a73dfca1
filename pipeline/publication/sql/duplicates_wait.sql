-- Resources that came, and report what another one reports that came in the same export, or that has gone in it: what they were
-- mapped by is not so any more.
-- reads: waiting changed
INSERT INTO pg_temp.waiting
SELECT DISTINCT reference.from_surrogate_id
FROM pg_temp.changed AS own JOIN reference ON reference.from_surrogate_id = own.surrogate_id
WHERE starts_with(reference.role, %(duplicate)s)
  AND (reference.state = 'resolved') <> EXISTS (
      SELECT FROM reference_value AS fact
      WHERE fact.surrogate_id = reference.to_surrogate_id AND fact.name = reference.role)
