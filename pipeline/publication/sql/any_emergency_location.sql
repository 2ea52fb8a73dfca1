-- Whether a location says, or its former version did, that it is an emergency room.
-- reads: former_fact
SELECT EXISTS (SELECT FROM reference_value WHERE name = 'emergency_location')
    OR EXISTS (SELECT FROM pg_temp.former_fact AS former_fact WHERE name = 'emergency_location')
