"""What the transform stage leaves for publication: Parquet parts, known lines and facts, and how they are read."""
