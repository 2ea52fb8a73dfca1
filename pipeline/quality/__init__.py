"""What looks at a finished warehouse: reports, checks, the comparison with a fresh load, pages made from mappings."""
