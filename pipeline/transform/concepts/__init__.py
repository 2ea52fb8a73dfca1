"""From codes to concepts: distinct code sets, the concept index, the choice among codings, look-ups that count."""
