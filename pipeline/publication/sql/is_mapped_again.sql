-- Of a pending link: its resource also waits for what its target says, and that is there.
EXISTS (SELECT FROM reference AS used JOIN reference_value AS fact
        ON fact.surrogate_id = used.to_surrogate_id AND fact.name = used.role
        WHERE used.from_surrogate_id = reference.from_surrogate_id AND used.to_surrogate_id = reference.to_surrogate_id
          AND used.state = 'pending' AND used.role <> ALL(%(no_facts)s))
