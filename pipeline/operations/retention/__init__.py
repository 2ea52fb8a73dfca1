"""What grows with time and is not needed any more goes: one item for each thing, by the settings of `retention:`. What
decides, maps, replays or proves anything is never an item, or is kept with the reason."""
