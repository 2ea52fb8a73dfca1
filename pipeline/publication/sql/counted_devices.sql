-- Devices that came, or are mapped again, and of which another resource says that it counts as their exposure.
-- reads: changed
-- makes: counted_device
CREATE TEMP TABLE counted_device ON COMMIT DROP AS
SELECT DISTINCT device.surrogate_id FROM pg_temp.changed AS device JOIN reference_value AS fact USING (surrogate_id)
WHERE fact.name = 'device_counted' AND fact.owner_surrogate_id <> device.surrogate_id
